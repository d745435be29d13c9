"""A run that starts from an earlier one: weights of the segmenter, and numbers of the clusters."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stages import cluster, evaluate, predict, pretrain, train
from stages.core.artefacts import read_metrics
from stages.core.tensors import read_tensors, write_tensors
from stages.reporting.lineage import lineage
from stages.reporting.names import Names, read_names, write_names
from tests.workbench import TRAIN_INPUTS

CLUSTER = ["--images", "images/train", "--segmenter", "segmenter.safetensors"]
CLUSTER += ["--out", "pixel_centroids.safetensors", "--metrics", "cluster.json"]
TRAIN = [*TRAIN_INPUTS, "--out", "segmenter.safetensors"]
TRAIN += ["--history", "history.csv", "--metrics", "train.json"]
PREDICT = ["--images", "images/val", "--segmenter", "segmenter.safetensors"]
PREDICT += ["--centroids", "pixel_centroids.safetensors", "--out", "predictions.npy"]
EVALUATE = ["--name", "raw", "--predictions", "predictions.npy", "--images", "images", "--truth", "truth"]
EVALUATE += ["--metrics", "raw.json", "--readings", "readings.json", "--readings-table", "readings.csv"]
EVALUATE += ["--per-class", "per_class.csv", "--confusion-table", "confusion.csv"]
PRETRAIN = ["--images", "images/train", "--out", "backbone.safetensors"]
PRETRAIN += ["--history", "history.csv", "--metrics", "pretrain.json"]
FINAL = Path("pixel_centroids.safetensors")


@pytest.fixture
def earlier(bench: Any) -> Any:
    """A run with four clusters, kept in the folder `before`, its clusters in reverse order."""
    bench.params(pixel_k=4)
    bench.write_segmenter()
    cluster.main(CLUSTER)
    Path("before").mkdir()
    shutil.copy("segmenter.safetensors", "before")
    tensors, about = read_tensors(FINAL)
    write_tensors(Path("before") / FINAL, {"centroids": tensors["centroids"].flip(0)}, about)
    return bench


def _numbers() -> dict[str, Any]:
    return dict(read_metrics(Path("cluster.json"))["cluster"]["numbers"])


def test_the_same_clusters_take_the_numbers_of_before(earlier: Any) -> None:
    earlier.params(pixel_k=4, cluster__previous="before")
    cluster.main(CLUSTER)
    now, about = read_tensors(FINAL)
    before, _ = read_tensors("before" / FINAL)
    assert torch.equal(now["centroids"], before["centroids"])
    assert [one["cluster"] for one in _numbers()["continued"]] == [0, 1, 2, 3]
    assert all(one["iou"] == 1 for one in _numbers()["continued"])
    old = hashlib.sha256(("before" / FINAL).read_bytes()).hexdigest()[:12]
    made_for = hashlib.sha256(Path("segmenter.safetensors").read_bytes()).hexdigest()
    assert about == {"pixel_k": 4, "segmenter": made_for, "continues": [old], "void": {old: []}}
    write_names(Path("names.yaml"), Names({2: "sky"}), old)
    assert read_names(Path("names.yaml"), num_clusters=4, clusters=lineage(FINAL)).of == {2: "sky"}


def test_numbers_change_no_score(earlier: Any) -> None:
    def scores() -> dict[str, Any]:
        cluster.main(CLUSTER)
        predict.main(PREDICT)
        evaluate.main(EVALUATE)
        return dict(read_metrics(Path("raw.json"))["raw"])

    earlier.params(pixel_k=4)
    plain, centroids = scores(), read_tensors(FINAL)[0]["centroids"]
    earlier.params(pixel_k=4, cluster__previous="before")
    kept = scores()
    assert not torch.equal(read_tensors(FINAL)[0]["centroids"], centroids), "nothing was renumbered"
    # Where two clusters score the same in half precision, the lower number is taken: hence the tolerance.
    for figure in ("accuracy", "miou", "effective_clusters", "image_share"):
        assert kept[figure] == pytest.approx(plain[figure], abs=2e-3), figure


@pytest.mark.parametrize("pixel_k", [2, 3, 6])
def test_another_number_of_clusters(earlier: Any, pixel_k: int, capsys: pytest.CaptureFixture[str]) -> None:
    earlier.params(pixel_k=pixel_k, cluster__previous="before")
    cluster.main(CLUSTER)
    _, about = read_tensors(FINAL)
    numbers = _numbers()
    kept = {one["cluster"] for one in numbers["continued"]}
    assert kept | set(numbers["new"]) == set(range(pixel_k))
    assert kept | {one["from"] for one in numbers["moved"]} | set(numbers["gone"]) == set(range(4))
    assert "cluster: continued" in capsys.readouterr().out
    # A name of before holds for what goes on under its number, and for nothing else.
    (old,) = about["continues"]
    write_names(Path("names.yaml"), Names({one: f"name {one}" for one in range(4)}), old)
    found = read_names(Path("names.yaml"), num_clusters=pixel_k, clusters=lineage(FINAL)).of
    assert found == {one: f"name {one}" for one in sorted(kept)}
    said = capsys.readouterr().out
    assert [one for one in range(4) if f"{one} 'name {one}'" in said] == sorted(set(range(4)) - kept)


def test_names_hold_over_three_runs_but_for_what_was_lost_on_the_way(earlier: Any) -> None:
    old = {"continues": ["aaaa", "bbbb"], "void": {"aaaa": [1], "bbbb": []}, "pixel_k": 4}
    tensors, _ = read_tensors("before" / FINAL)
    write_tensors("before" / FINAL, tensors, old)
    earlier.claim_centroids("before")
    earlier.params(pixel_k=4, cluster__previous="before")
    cluster.main(CLUSTER)
    last = hashlib.sha256(("before" / FINAL).read_bytes()).hexdigest()[:12]
    assert lineage(FINAL).earlier == (last, "aaaa", "bbbb")
    names = {0: "sky", 1: "road"}
    for clusters, expected in ((last, names), ("bbbb", names), ("aaaa", {0: "sky"})):
        write_names(Path("names.yaml"), Names(names), clusters)
        assert read_names(Path("names.yaml"), num_clusters=4, clusters=lineage(FINAL)).of == expected


def test_an_earlier_network_of_another_size_is_compared_at_its_own(earlier: Any) -> None:
    tensors, about = read_tensors(Path("before/segmenter.safetensors"))
    write_tensors(Path("before/segmenter.safetensors"), tensors, {**about, "size_px": 16})
    earlier.claim_centroids("before")
    earlier.params(pixel_k=4, cluster__previous="before")
    cluster.main(CLUSTER)
    assert set(_numbers()) == {"continued", "new", "gone", "moved"}


def test_faults_of_earlier_clusters(earlier: Any) -> None:
    earlier.params(pixel_k=4, cluster__previous="nowhere")
    assert earlier.fault(cluster.main, CLUSTER).startswith(
        "nowhere/pixel_centroids.safetensors: cannot be read"
    )
    earlier.params(pixel_k=4, cluster__previous="before", cluster__previous_sha256="0" * 64)
    message = earlier.fault(cluster.main, CLUSTER)
    assert message.startswith(
        f"cluster.previous_sha256: is {'0' * 64}, but before/pixel_centroids.safetensors has"
    )
    assert message.endswith("get the pinned file, or set previous_sha256 to this hash")
    tensors, about = read_tensors(Path("before/segmenter.safetensors"))
    write_tensors(Path("before/segmenter.safetensors"), tensors, {**about, "size_px": 16})
    earlier.params(pixel_k=4, cluster__previous="before")
    message = earlier.fault(cluster.main, CLUSTER)
    assert message.startswith(f"before/{FINAL}: the clusters were made for another segmenter (SHA-256 ")
    assert message.endswith("(`make pin WARM=1` does), or set cluster.previous: ''")
    Path("before/segmenter.safetensors").unlink()
    message = earlier.fault(cluster.main, CLUSTER)
    assert message.startswith("before/segmenter.safetensors: not found; copy both files of one run there")


# Training from an earlier segmenter


@pytest.fixture
def trained(bench: Any) -> Any:
    """An earlier segmenter with weights of its own, and the inputs of `train`."""
    bench.write_backbone()
    bench.write_kept_views()
    bench.write_segmenter()
    tensors, about = read_tensors(Path("segmenter.safetensors"))
    shifted = {name: value + 1 if value.is_floating_point() else value for name, value in tensors.items()}
    write_tensors(Path("earlier.safetensors"), shifted, about)
    return bench


STILL = {
    "train__lr": 1e-30,
    "train__epochs": 1,
    "train__context__lr_factor": 1e-20,
}  # weights stay as they start


def test_training_starts_from_the_weights_of_before(trained: Any) -> None:
    sha256 = hashlib.sha256(Path("earlier.safetensors").read_bytes()).hexdigest()
    trained.params(train__init="earlier.safetensors", train__init_sha256=sha256, **STILL)
    train.main(TRAIN)
    start, _ = read_tensors(Path("earlier.safetensors"))
    found, _ = read_tensors(Path("segmenter.safetensors"))
    pretrained, _ = read_tensors(Path("backbone.safetensors"))
    learned = [name for name in start if name.endswith(("weight", "bias")) and "kernel" not in name]
    of_backbone = [name for name in learned if name.startswith("backbone.")]
    assert 0 < len(of_backbone) < len(learned)
    for name in learned:  # the backbone is that of `pretrain`, which may know more photographs
        expected = pretrained[name.removeprefix("backbone.")] if name in of_backbone else start[name]
        torch.testing.assert_close(found[name], expected, msg=name)
    init = read_metrics(Path("train.json"))["train"]["init"]
    assert init["sha256"] == sha256
    assert init["not_taken"] == []
    assert {name.split(".")[0] for name in init["not_started"]} == {"image_head"}


def test_what_does_not_fit_is_said_and_starts_anew(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trained.params(train__init="earlier.safetensors", train__fpn_dim=12, global_k=3, **STILL)
    np.save("kept_views.npy", np.minimum(np.load("kept_views.npy"), 2))
    train.main(TRAIN)
    init = read_metrics(Path("train.json"))["train"]["init"]
    assert "decoder.lateral.0.weight" in init["not_taken"]
    assert "decoder.lateral.0.weight" in init["not_started"]
    assert not [name for name in init["not_taken"] if name.startswith("backbone.")]
    assert "decoder.lateral.0.weight" in capsys.readouterr().out
    found, _ = read_tensors(Path("segmenter.safetensors"))
    assert found["decoder.lateral.0.weight"].shape[0] == 12


def test_faults_of_an_earlier_segmenter(trained: Any) -> None:
    trained.params(train__init="earlier.safetensors", train__init_sha256="0" * 64)
    assert trained.fault(train.main, TRAIN).startswith(
        f"train.init_sha256: is {'0' * 64}, but earlier.safetensors"
    )
    trained.params(train__init="backbone.safetensors")
    assert "backbone.safetensors: has no weight that fits" in trained.fault(train.main, TRAIN)
    trained.params(train__init="nowhere")
    assert trained.fault(train.main, TRAIN).startswith("nowhere: cannot be read (No such file or directory)")
    save_file({"weight": torch.zeros(1)}, "of_others.safetensors")
    trained.params(train__init="of_others.safetensors")
    assert trained.fault(train.main, TRAIN) == (
        "of_others.safetensors: not a safetensors file of this project ('about'); set train.init to the "
        "segmenter.safetensors of an earlier run, or to ''"
    )


def test_pretraining_starts_from_our_own_backbone(bench: Any) -> None:
    bench.write_backbone()
    shutil.copy("backbone.safetensors", "earlier.safetensors")
    bench.params(pretrain__method="none", pretrain__init="earlier.safetensors")
    pretrain.main(PRETRAIN)
    start, found = (read_tensors(Path(f"{name}.safetensors"))[0] for name in ("earlier", "backbone"))
    assert set(start) == set(found)
    assert all(torch.equal(found[name], value) for name, value in start.items())
