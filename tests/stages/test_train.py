"""`train` through its command line: files, switches, resuming, and every mistake that it knows."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stages import train
from stages.core.artefacts import read_metrics, write_metrics
from stages.segmenter.context import KERNELS
from stages.segmenter.segmenter_file import load_segmenter
from stages.training.clusters import PixelClusterer
from stages.training.guidance import LabelFigures, guidance_weight
from tests.datasets import picie
from tests.tensors import assert_near
from tests.workbench import TRAIN_INPUTS

OUTPUTS = ("segmenter.safetensors", "history.csv", "train.json")
ARGV = [*TRAIN_INPUTS, "--out", OUTPUTS[0], "--history", OUTPUTS[1], "--metrics", OUTPUTS[2]]
LOSSES = ["loss", "within", "cross", "image_loss", "image_accuracy", "guidance_weight", "guided_share"]
SIGNS = ["effective_clusters", "largest_cluster", "image_share", "moved_share", "view_agreement"]
FIGURES = [*LOSSES, *SIGNS, *KERNELS]


@pytest.fixture
def ready(bench: Any) -> Any:
    """All that `train` reads."""
    bench.write_backbone()
    bench.write_kept_views()
    return bench


def test_a_graph_without_a_gpu_ends_with_its_remedy(ready: Any) -> None:
    ready.params(runtime__cuda_graph=True)
    assert ready.fault(train.main, ARGV) == (
        "params.yaml: runtime.cuda_graph: true needs a GPU, but the device is cpu; set "
        "runtime.cuda_graph: auto"
    )


def test_writes_segmenter_history_and_metrics(ready: Any) -> None:
    train.main(ARGV)
    segmenter, about = load_segmenter(Path(OUTPUTS[0]))
    assert not segmenter.training
    assert about["size_px"] == 32
    assert (about["fpn_dim"], about["feature_stride"]) == (8, 2)
    tensors, _ = ready.tensors(OUTPUTS[0])
    assert not [name for name in tensors if name.startswith("image_head")]
    assert all(torch.isfinite(value).all() for value in tensors.values())
    with torch.no_grad():
        feature = segmenter(torch.rand(2, 3, 32, 32))
    assert feature.shape == (2, 8, 16, 16)
    history = pd.read_csv(OUTPUTS[1])
    assert list(history.columns) == ["epoch", *FIGURES]
    assert history["epoch"].tolist() == [1, 2]
    assert np.isfinite(history.drop(columns="moved_share").to_numpy()).all()
    assert np.isnan(history["moved_share"][0])  # nothing to compare with yet
    assert 0 <= history["moved_share"][1] <= 1
    weights = ready.read("train").train
    expected = (history["within"] + history["cross"]) / 2 + weights.image_loss.weight * history["image_loss"]
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-4)
    metrics = read_metrics(Path(OUTPUTS[2]))
    assert list(metrics) == ["train"]
    assert list(metrics["train"]) == ["epoch", *FIGURES, "cluster_shares", "collapsed", "environment"]
    shares = metrics["train"]["cluster_shares"]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert shares == sorted(shares, reverse=True)
    assert metrics["train"]["collapsed"] is False


def test_the_segmenter_remembers_the_clusters_of_the_last_epoch(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    cluster = PixelClusterer.cluster

    def note(self: PixelClusterer, *args: Any) -> Any:
        found.append(cluster(self, *args))
        return found[-1]

    monkeypatch.setattr(PixelClusterer, "cluster", note)
    train.main(ARGV)
    tensors, _ = ready.tensors(OUTPUTS[0])
    assert len(found) == 2
    for name, view in zip(("first_view", "second_view"), found[-1], strict=True):
        assert tuple(tensors[f"clusters.{name}"].shape) == (3, 8)
        assert torch.equal(tensors[f"clusters.{name}"], view.centroids)


def test_every_part_of_the_network_learns(ready: Any) -> None:
    train.main(ARGV)
    trained = ready.tensors(OUTPUTS[0])[0]
    backbone = ready.tensors("backbone.safetensors")[0]
    moved = [name for name, value in backbone.items() if not torch.equal(trained[f"backbone.{name}"], value)]
    assert {name for name in backbone if name.endswith("weight")} <= set(moved)
    settings = ready.read("train").train.context
    start = np.log([getattr(settings, name) for name in KERNELS])
    assert (np.abs(trained["context.log_kernel"].numpy() - start) > 1e-6).all()
    assert trained["context.value.weight"].abs().max() > 0


def test_without_guidance_the_views_decide_nothing(ready: Any) -> None:
    ready.params(train__image_loss__weight=0.0)
    train.main(ARGV)
    history = pd.read_csv(OUTPUTS[1])
    assert (history["guided_share"] == 0).all()
    assert history[["image_loss", "image_accuracy"]].isna().all(axis=None)
    first = ready.hashes(*OUTPUTS)
    np.save("kept_views.npy", np.full((16, 6), -1, np.int32))
    train.main(ARGV)
    assert ready.hashes(*OUTPUTS) == first


def test_images_without_a_kept_view_give_no_guidance(ready: Any) -> None:
    np.save("kept_views.npy", np.full((16, 6), -1, np.int32))
    train.main(ARGV)
    assert pd.read_csv(OUTPUTS[1])["image_loss"].isna().all()


def test_batches_without_a_kept_view_do_not_dilute_the_image_loss(ready: Any) -> None:
    """Five of 16 images have kept views; one or two of the four batches have two of them, and are guided."""
    kept = np.full((16, 6), -1, np.int32)
    kept[:5] = 1
    np.save("kept_views.npy", kept)
    ready.params(train__batch_size=4, train__lr=1e-9, train__epochs=4, train__image_loss__held_out=0.0)
    train.main(ARGV)
    history = pd.read_csv(OUTPUTS[1])
    assert set(history["guided_share"]) == {0.25, 0.5}
    assert history["image_loss"].max() < 1.1 * history["image_loss"].min(), "the network hardly learns"


# From a stability of 0.6 to 0.75, `auto` rises from 0 to 0.3; from an agreement with the position of 0.1 to
# 0.2, it falls to 0.
@pytest.mark.parametrize(
    ("stability", "position", "weight"),
    [
        (-0.1, 0.0, 0.0),
        (0.6, 0.0, 0.0),
        (0.63, 0.05, 0.06),
        (0.675, -0.01, 0.15),
        (0.75, 0.1, 0.3),
        (1.0, 0.0, 0.3),
        (0.75, 0.14, 0.18),
        (0.675, 0.15, 0.075),
        (0.9, 0.2, 0.0),
        (1.0, 0.9, 0.0),
    ],
)
def test_the_weight_auto_follows_the_pseudo_labels(stability: float, position: float, weight: float) -> None:
    parts = np.array([[0, 1, -1], [-1, -1, -1]])
    assert guidance_weight("auto", LabelFigures(stability, position), parts) == pytest.approx(weight)
    assert guidance_weight(0.25, LabelFigures(stability, position), parts) == 0.25


def test_the_position_of_views_does_not_matter_where_whole_images_guide() -> None:
    whole = np.array([[0, -1, -1], [-1, -1, -1]])
    assert guidance_weight("auto", LabelFigures(0.75, 0.9), whole) == pytest.approx(0.3)


@pytest.mark.parametrize(("stability", "position", "weight"), [(0.675, 0.15, 0.075), (0.6, 0.0, 0.0)])
def test_training_takes_the_weight_auto(
    ready: Any, capsys: pytest.CaptureFixture[str], stability: float, position: float, weight: float
) -> None:
    ready.write_label_metrics(stability, position)
    ready.params(**SHORT, train__image_loss__weight="auto")
    train.main(ARGV)
    signs = f"label.stability {stability:g}  label.agreement_with_position {position:g}"
    assert f"guidance_weight {weight:g}  {signs}" in capsys.readouterr().out
    assert pd.read_csv(OUTPUTS[1])["guidance_weight"].tolist() == pytest.approx([weight])
    assert read_metrics(Path(OUTPUTS[2]))["train"]["guidance_weight"] == pytest.approx(weight)
    chosen = ready.tensors(OUTPUTS[0])[0]
    ready.params(**SHORT, train__image_loss__weight=weight)
    train.main(ARGV)
    for name, value in ready.tensors(OUTPUTS[0])[0].items():
        torch.testing.assert_close(chosen[name], value, rtol=1e-4, atol=1e-5)


def test_a_warm_up_holds_for_the_weight_auto(ready: Any) -> None:
    ready.params(train__image_loss__weight="auto", train__image_loss__warmup_epochs=2.0)
    train.main(ARGV)
    # Four steps an epoch, at 0/8 to 7/8 of the 0.15 that 0.675 gives.
    assert pd.read_csv(OUTPUTS[1])["guidance_weight"].tolist() == pytest.approx(
        [0.15 * 1.5 / 8, 0.15 * 5.5 / 8], rel=1e-4
    )


@pytest.mark.parametrize("figure", ["stability", "agreement_with_position"])
def test_label_metrics_that_lack_a_figure_are_refused(ready: Any, figure: str) -> None:
    figures = {"stability": 0.7, "agreement_with_position": 0.0, "mean_score": 0.5}
    write_metrics(
        Path("label.json"), {"label": {name: one for name, one in figures.items() if name != figure}}
    )
    assert ready.fault(train.main, ARGV) == (
        f"label.json: has no label.{figure}; run `dvc repro label` to make it again"
    )


def test_without_raw_similarity_there_are_no_figures_of_its_kernels(ready: Any) -> None:
    ready.params(**SHORT, train__context__similarity="cnn")
    train.main(ARGV)
    assert set(KERNELS).isdisjoint(pd.read_csv(OUTPUTS[1]).columns)
    assert set(KERNELS).isdisjoint(read_metrics(Path(OUTPUTS[2]))["train"])


def test_without_context_there_is_no_module(ready: Any) -> None:
    ready.params(train__context__similarity="none")
    train.main(ARGV)
    assert not [name for name in ready.tensors(OUTPUTS[0])[0] if name.startswith("context")]
    segmenter, _ = load_segmenter(Path(OUTPUTS[0]))
    assert segmenter.context is None


SWITCHES: list[dict[str, Any]] = [
    {},
    {"train__freeze": "batch_norm"},
    {"train__freeze": "backbone"},
    {"train__crop_side": [0.6, 1.0]},
    {"train__flip_probability": 0.0},
    {"train__crop_first": False},
    {"train__photometric__jitter_together": False},
    {"train__clustering__kmeans": "minibatch"},
    {"train__clustering__unit_centroids": False},
    {"train__clustering__unit_centroids": False, "train__clustering__assign": "euclidean"},
    {"train__clustering__assign_batch_norm": "running"},
    {
        "train__pixel_loss__metric": "euclidean",
        "cluster__unit_centroids": False,
        "train__clustering__unit_centroids": False,
        "train__clustering__assign": "euclidean",
    },
    {"train__pixel_loss__temperature": 0.1},
    {"train__pixel_loss__cross_weight": 0.0},
    {"train__pixel_loss__balance": "frequency"},
    {"train__pixel_loss__balance": "inverse"},
    {"train__image_loss__weight": 0.0},
    {"train__image_loss__weight": "auto"},
    {"train__image_loss__warmup_epochs": 2.0},
    {"train__image_loss__views": "all"},
    {"train__image_loss__views": "pooled"},
    {"train__image_loss__head": "classical"},
    {"train__image_loss__head": "relu_gap_fc"},
    {"train__image_loss__head": "mlp"},
    {"train__image_loss__label_smoothing": 0.1},
    {"train__image_loss__balance": "frequency"},
    {"train__image_loss__balance": "inverse"},
    {"train__image_loss__held_out": 0.5},
    {"train__context__combine": "sum"},
    {"train__context__norm": "softmax"},
    {"train__context__norm": "softmax", "train__context__combine": "log_sum"},
    {"train__context__norm": "count"},
    {"train__context__norm": "none"},
    {"train__context__similarity": "raw"},
    {"train__context__similarity": "cnn"},
    {"train__context__similarity": "none"},
    {"train__context__color": "lab"},
    {"train__context__image": "clean"},
    {"train__context__residual": "concat"},
    {"train__context__residual": "none", "train__context__start": "random"},
    {"train__context__start": "random"},
    # From `identity`, two steps are too few for the kernels to be felt.
    {"train__context__learn_kernels": False, "train__context__start": "random"},
    {"train__context__stride": 8},
    {"train__feature_stride": 4},
    {"precision": "bfloat16"},
    picie(),
    {**picie(), "train__clustering__batches_per_update": 2},
    {"train__context__kernel_bounds": [0.0999, 0.5001], "train__context__start": "random"},
]


SHORT = {
    "train__epochs": 1,
    "train__batch_size": 8,
    "train__clustering__sample_images": 8,
    "train__clustering__sample_pixels": 160,
    "train__clustering__iterations": 2,
}


def test_every_switch_runs_and_gives_a_result_of_its_own(ready: Any) -> None:
    results: dict[bytes, str] = {}
    for changes in SWITCHES:
        ready.params(**{**SHORT, **changes})
        train.main(ARGV)
        history = pd.read_csv(OUTPUTS[1]).drop(columns="moved_share")
        if not history["guided_share"].all():
            history = history.drop(columns=["image_loss", "image_accuracy"])
        assert np.isfinite(history.to_numpy()).all(), changes
        content = ready.tensors(OUTPUTS[0])[0]
        result = content["decoder.lateral.0.weight"].numpy().tobytes()
        assert result not in results, f"{changes} gives what {results[result]} gives"
        results[result] = str(changes)
        with torch.no_grad():
            feature = load_segmenter(Path(OUTPUTS[0]))[0](torch.rand(2, 3, 32, 32))
        assert torch.isfinite(feature).all(), changes


def test_the_same_inputs_give_the_same_bytes_and_leave_no_state(ready: Any) -> None:
    train.main(ARGV)
    first = ready.hashes(*OUTPUTS)
    train.main(ARGV)
    assert ready.hashes(*OUTPUTS) == first
    assert ready.saved_states() == []


# Two epochs of four batches, and no state at the end of an epoch: three saves in each.
@pytest.mark.parametrize(("after", "weight"), [(1, 1.0), (3, 1.0), (4, 1.0), (2, "auto")])
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    ready: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: int,
    weight: float | str,
) -> None:
    ready.params(train__image_loss__weight=weight)
    train.main(ARGV)
    uninterrupted = ready.hashes(*OUTPUTS)
    for path in OUTPUTS:
        Path(path).unlink()
    ready.interrupt(train.main, ARGV, after, monkeypatch)
    assert not any(Path(path).exists() for path in OUTPUTS)
    capsys.readouterr()
    train.main(ARGV)
    assert "train: resuming from the state in" in capsys.readouterr().out
    assert ready.hashes(*OUTPUTS) == uninterrupted
    assert ready.saved_states() == []


@pytest.mark.parametrize("change", ["params", "views", "label", "backbone"])
def test_the_state_of_other_params_or_inputs_is_not_used(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    ready.interrupt(train.main, ARGV, 1, monkeypatch)
    if change == "params":
        ready.params(train__lr=0.01)
    elif change == "label":
        ready.write_label_metrics(0.68)
    elif change == "views":
        np.save("kept_views.npy", np.load("kept_views.npy")[::-1].copy())
    else:
        path = Path("backbone.safetensors")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    capsys.readouterr()
    train.main(ARGV)
    assert "resuming from" not in capsys.readouterr().out


def test_views_of_other_images_are_refused(ready: Any) -> None:
    ready.write_kept_views(count=15)
    assert ready.fault(train.main, ARGV) == (
        "kept_views.npy: has 15 images, but images/train has 16; run `dvc repro`"
    )


def test_a_batch_that_is_larger_than_the_data_is_refused(ready: Any) -> None:
    ready.params(train__batch_size=17)
    assert ready.fault(train.main, ARGV) == (
        "params.yaml: train.batch_size: 17 is more than the 16 training images; lower it, or add images"
    )


def test_a_sample_that_is_smaller_than_a_batch_is_taken_whole_or_refused(ready: Any) -> None:
    """`sample_images` below `batch_size` must not end in a division by zero."""
    ready.params(train__batch_size=8, train__clustering__sample_images=4)
    train.main(ARGV)
    assert Path(OUTPUTS[0]).exists()


def test_fewer_pixels_than_clusters_are_refused_at_once(ready: Any) -> None:
    ready.params(pixel_k=200, train__clustering__sample_pixels=40)
    assert ready.fault(train.main, ARGV) == (
        "params.yaml: pixel_k: 200 clusters need at least as many pixels, but k-means starts from 36 "
        "(train.clustering.sample_images, sample_pixels); lower pixel_k, or raise these"
    )
    minibatch = {"train__clustering__kmeans": "minibatch", "train__clustering__init_batches": 1}
    ready.params(**minibatch, train__clustering__num_clusters=2000)
    assert ready.fault(train.main, ARGV) == (
        "params.yaml: train.clustering.num_clusters: 2000 clusters need at least as many pixels, but k-means "
        "starts from 1024 (train.clustering.init_batches, batches_per_update); lower "
        "train.clustering.num_clusters, or raise these"
    )


@pytest.mark.parametrize("pixel_k", [2, 200])
def test_few_and_many_clusters(ready: Any, pixel_k: int) -> None:
    ready.params(**{**SHORT, "pixel_k": pixel_k, "train__clustering__sample_pixels": 800})
    train.main(ARGV)
    metrics = read_metrics(Path(OUTPUTS[2]))["train"]
    assert len(metrics["cluster_shares"]) == pixel_k
    assert 1 <= metrics["effective_clusters"] <= pixel_k


@pytest.mark.parametrize("kmeans", ["sample", "minibatch"])
def test_more_clusters_in_training_than_in_the_end(ready: Any, kmeans: str) -> None:
    """They are those of a run with this pixel_k: nothing else of training depends on pixel_k."""
    ready.params(**SHORT, pixel_k=7, train__clustering__kmeans=kmeans)
    train.main(ARGV)
    expected, _ = ready.tensors(OUTPUTS[0])
    ready.params(**SHORT, pixel_k=3, train__clustering__kmeans=kmeans, train__clustering__num_clusters=7)
    train.main(ARGV)
    found, _ = ready.tensors(OUTPUTS[0])
    assert found["clusters.first_view"].shape[0] == 7
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(read_metrics(Path(OUTPUTS[2]))["train"]["cluster_shares"]) == 7


def test_too_many_clusters_of_training_are_refused_by_their_key(ready: Any) -> None:
    ready.params(train__clustering__num_clusters=200, train__clustering__sample_pixels=40)
    assert ready.fault(train.main, ARGV) == (
        "params.yaml: train.clustering.num_clusters: 200 clusters need at least as many pixels, but k-means "
        "starts from 36 (train.clustering.sample_images, sample_pixels); lower "
        "train.clustering.num_clusters, or raise these"
    )


@pytest.mark.parametrize("kmeans", ["sample", "minibatch"])
def test_images_of_one_colour_train_and_are_called_collapsed_or_not(ready: Any, kmeans: str) -> None:
    """Pixels have nearly the same feature: nothing divides by 0, and clusters are reported as they are."""
    images = np.load("images/train/images.npy")
    np.save("images/train/images.npy", np.full_like(images, 127))
    ready.params(**SHORT, train__clustering__kmeans=kmeans)
    train.main(ARGV)
    tensors, _ = ready.tensors(OUTPUTS[0])
    assert all(torch.isfinite(value).all() for value in tensors.values())
    metrics = read_metrics(Path(OUTPUTS[2]))["train"]
    used = (metrics["effective_clusters"] - 1) / 2
    assert metrics["collapsed"] is (used < 0.2)


def test_a_backbone_of_another_architecture_is_refused(ready: Any) -> None:
    ready.params(backbone__width=16)
    assert ready.fault(train.main, ARGV) == (
        "backbone.safetensors: holds {'arch': 'resnet18', 'stem_stride': 2, 'width': 8}, but "
        "params.yaml says backbone: {'arch': 'resnet18', 'width': 16, 'stem_stride': 2}; "
        "run `dvc repro` to pretrain the backbone of params.yaml"
    )


def test_a_loss_that_is_no_number_ends_it(ready: Any) -> None:
    ready.params(train__lr=1e30)
    assert re.fullmatch(
        r"train: not finite in epoch 1, at step 4: loss, within, [a-z_, ]+; lower train\.lr|"
        r"k-means: some features are not finite: the network diverged; lower train\.lr or pretrain\.lr, "
        r"or set precision: float32",
        ready.fault(train.main, ARGV),
    )


def test_compiled_networks_do_the_same(in_float64: None, ready: Any, compiled: list[str]) -> None:
    train.main(ARGV)
    plain, plain_history = ready.tensors(OUTPUTS[0])[0], pd.read_csv(OUTPUTS[1])
    ready.params(compile=True)
    train.main(ARGV)
    assert compiled == ["ResNet", "FPN", "ContextModule"] * 2  # the network and its frozen copy
    # What enlarges feature maps is compiled otherwise, and rounds otherwise.
    pd.testing.assert_frame_equal(pd.read_csv(OUTPUTS[1]), plain_history, rtol=1e-5)
    assert_near(ready.tensors(OUTPUTS[0])[0], plain, 1e-5)
