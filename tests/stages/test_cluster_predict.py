"""`cluster` and `predict` through their command lines."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.metrics import adjusted_mutual_info_score

from stages import cluster, predict
from stages.core.artefacts import read_metrics
from stages.core.device import torch_generator
from stages.core.tensors import write_tensors
from stages.final_clusters import sampling
from stages.segmenter.segmenter_file import load_segmenter
from tests.datasets import picie

CLUSTERED = ("pixel_centroids.safetensors", "cluster.json")
CLUSTER = ["--images", "images/train", "--segmenter", "segmenter.safetensors"]
CLUSTER += ["--out", CLUSTERED[0], "--metrics", CLUSTERED[1]]
PREDICT = ["--images", "images/val", "--segmenter", "segmenter.safetensors"]
PREDICT += ["--centroids", "pixel_centroids.safetensors", "--out", "predictions.npy"]


@pytest.fixture
def ready(bench: Any) -> Any:
    bench.write_segmenter()
    bench.write_centroids()
    return bench


def test_cluster_writes_unit_centroids_and_figures(ready: Any) -> None:
    cluster.main(CLUSTER)
    tensors, about = ready.tensors(CLUSTERED[0])
    made_for = hashlib.sha256(Path("segmenter.safetensors").read_bytes()).hexdigest()
    assert about == {"pixel_k": 3, "segmenter": made_for}
    assert list(tensors) == ["centroids"]
    assert (tensors["centroids"].dtype, tuple(tensors["centroids"].shape)) == (torch.float32, (3, 8))
    torch.testing.assert_close(tensors["centroids"].norm(dim=1), torch.ones(3))
    figures = read_metrics(Path(CLUSTERED[1]))
    assert list(figures) == ["cluster"]
    assert 1 < figures["cluster"]["effective_clusters"] <= 3
    assert 0 < figures["cluster"]["mean_score"] <= 1
    assert figures["cluster"]["stability"] <= 1


def test_cluster_gives_the_same_bytes_twice(ready: Any) -> None:
    cluster.main(CLUSTER)
    first = ready.hashes(*CLUSTERED)
    cluster.main(CLUSTER)
    assert ready.hashes(*CLUSTERED) == first
    ready.params(seed=1)
    cluster.main(CLUSTER)
    assert ready.hashes(*CLUSTERED) != first


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster__kmeans": "minibatch"},
        {"cluster__unit_centroids": False},
        {"cluster__batch_norm": "batch"},
        {"cluster__batch_norm": "fresh"},
        picie(),
    ],
)
def test_every_switch_of_cluster_gives_centroids_of_its_own(ready: Any, changes: dict[str, Any]) -> None:
    cluster.main(CLUSTER)
    plain = ready.tensors(CLUSTERED[0])[0]["centroids"]
    ready.params(**changes)
    cluster.main(CLUSTER)
    centroids = ready.tensors(CLUSTERED[0])[0]["centroids"]
    assert centroids.shape == plain.shape
    assert not torch.equal(centroids, plain)
    is_unit = bool((centroids.norm(dim=1) - 1).abs().max() < 1e-5)
    assert is_unit == changes.get("cluster__unit_centroids", True)
    predict.main(PREDICT)  # takes centroids of any length
    assert np.isfinite(np.load("predictions.npy")).all()


@pytest.mark.parametrize(("view", "other"), [("first_view", "second_view"), ("second_view", "first_view")])
def test_clusters_that_training_followed(ready: Any, view: str, other: str) -> None:
    ready.params(cluster__centroids=view)
    cluster.main(CLUSTER)
    trained, _ = ready.tensors("segmenter.safetensors")
    chosen, compared = trained[f"clusters.{view}"], trained[f"clusters.{other}"]
    assert torch.equal(ready.tensors(CLUSTERED[0])[0]["centroids"], chosen)
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    images = torch.from_numpy(np.load("images/train/images.npy")).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        pixels = segmenter(F.interpolate(images, size=(32, 32), mode="bilinear", antialias=True))
    pixels = F.normalize(pixels.permute(0, 2, 3, 1).flatten(0, 2))
    first, second = ((pixels @ one.T).argmax(1).numpy() for one in (chosen, compared))
    figures = read_metrics(Path(CLUSTERED[1]))["cluster"]
    # The figure is of a sample of these pixels.
    assert figures["stability"] == pytest.approx(adjusted_mutual_info_score(first, second), abs=0.05)


def _batch_norms(path: str) -> dict[str, torch.Tensor]:
    tensors = load_file(path)
    return {
        name.removeprefix("batch_norm."): value
        for name, value in tensors.items()
        if name.endswith(("running_mean", "running_var"))
    }


def test_prediction_uses_the_statistics_that_the_final_clustering_left(ready: Any) -> None:
    """PiCIE clusters in training mode, and predicts with the running statistics that this has moved."""
    ready.params(**picie())
    cluster.main(CLUSTER)
    moved = _batch_norms(CLUSTERED[0])
    trained = _batch_norms("segmenter.safetensors")
    assert set(moved) == set(trained)
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    centroids = ready.tensors(CLUSTERED[0])[0]["centroids"]

    # By hand: each batch of the clustering moves the statistics of the first batch norm by a tenth.
    name, layer = next((n, m) for n, m in segmenter.named_modules() if isinstance(m, torch.nn.BatchNorm2d))
    order = torch.randperm(16, generator=torch_generator(0, "cluster", "order"))
    mean = layer.running_mean.double()
    taken: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: taken.append(given[0].double().mean((0, 2, 3))))
    with torch.no_grad():
        for rows in order.split(5)[:3]:
            segmenter(_train_images()[rows])
            mean = 0.9 * mean + 0.1 * taken.pop()
    torch.testing.assert_close(moved[f"{name}.running_mean"].double(), mean, rtol=1e-4, atol=1e-5)

    predict.main(PREDICT)
    segmenter.load_state_dict(moved, strict=False)
    images = torch.from_numpy(np.load("images/val/images.npy")).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        unit = F.normalize(segmenter.eval()(images))
    expected = torch.einsum("ndhw,kd->nkhw", unit, centroids)
    np.testing.assert_allclose(np.load("predictions.npy"), expected, atol=2e-3)


def _train_images() -> torch.Tensor:
    images = torch.from_numpy(np.load("images/train/images.npy")).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)


@pytest.mark.parametrize("kmeans", ["sample", "minibatch"])
@pytest.mark.parametrize(("batch_norm", "sizes"), [("batch", [5, 5, 5]), ("running", [5, 5, 5, 1])])
def test_one_image_alone_is_left_out_only_where_it_would_give_the_statistics(
    ready: Any, monkeypatch: pytest.MonkeyPatch, kmeans: str, batch_norm: str, sizes: list[int]
) -> None:
    seen: list[int] = []
    features = sampling.pixel_features

    def note(segmenter: Any, image: torch.Tensor, precision: str) -> Any:
        if segmenter.training == (batch_norm == "batch"):
            seen.append(len(image))
        return features(segmenter, image, precision)

    monkeypatch.setattr(sampling, "pixel_features", note)
    ready.params(
        cluster__kmeans=kmeans,
        cluster__batch_norm=batch_norm,
        cluster__batch_size=5,
        cluster__sample_images=16,
    )
    cluster.main(CLUSTER)
    assert seen[: len(sizes)] == sizes
    assert set(seen) == set(sizes)


def test_fresh_statistics_are_the_mean_over_clean_images(ready: Any) -> None:
    ready.params(cluster__batch_norm="fresh", cluster__batch_size=8)
    cluster.main(CLUSTER)
    found = _batch_norms(CLUSTERED[0])
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    name, layer = next((n, m) for n, m in segmenter.named_modules() if isinstance(m, torch.nn.BatchNorm2d))
    taken: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: taken.append(given[0].double()))
    with torch.no_grad():
        segmenter(_train_images())
    # Of equal batches the mean of the means is that of all images.
    expected = taken[0].mean((0, 2, 3))
    torch.testing.assert_close(found[f"{name}.running_mean"].double(), expected, rtol=1e-3, atol=1e-4)
    assert set(found) == set(_batch_norms("segmenter.safetensors"))


def test_statistics_of_another_network_are_refused(ready: Any) -> None:
    ready.params(cluster__batch_norm="fresh")
    cluster.main(CLUSTER)
    ready.params(cluster__batch_norm="fresh", backbone__arch="resnet50")
    ready.write_segmenter()
    ready.claim_centroids()
    message = ready.fault(predict.main, PREDICT)
    assert message.startswith("pixel_centroids.safetensors: batch-norm statistics of another network (")
    assert message.endswith("); run `dvc repro cluster`")


EUCLIDEAN = {
    "train__pixel_loss__metric": "euclidean",
    "train__clustering__unit_centroids": False,
    "train__clustering__assign": "euclidean",
    "cluster__unit_centroids": False,
}


def test_features_that_were_trained_with_their_length_keep_it(ready: Any) -> None:
    ready.params(**EUCLIDEAN)
    ready.write_segmenter()
    cluster.main(CLUSTER)
    centroids = ready.tensors(CLUSTERED[0])[0]["centroids"].double()
    predict.main(PREDICT)
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    images = torch.from_numpy(np.load("images/val/images.npy")).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        pixels = segmenter(images).double().permute(0, 2, 3, 1)
    squares = (pixels[..., None, :] - centroids).square().sum(-1)
    expected = pixels.square().sum(-1, keepdim=True) - squares
    scores = torch.from_numpy(np.load("predictions.npy")).double().permute(0, 2, 3, 1)
    expected -= expected.amax(-1, keepdim=True)  # the best is 0: float16 has no room for long features
    torch.testing.assert_close(scores, expected, rtol=2e-3, atol=2e-2)
    # The centroids are means of the features themselves.
    lengths = pixels.norm(dim=-1)
    assert lengths.min() * 0.5 < centroids.norm(dim=1).mean() < lengths.max() * 1.5


def test_long_features_do_not_overflow(ready: Any) -> None:
    """float16 ends at 65,504, where squared distances of untrained features soon are."""
    ready.params(**EUCLIDEAN)
    ready.write_segmenter()
    tensors, about = ready.tensors("segmenter.safetensors")
    scaled = {name: 3000 * value if name.startswith("decoder.") else value for name, value in tensors.items()}
    write_tensors(Path("segmenter.safetensors"), scaled, about)
    cluster.main(CLUSTER)
    predict.main(PREDICT)
    scores = np.load("predictions.npy").astype(np.float32)
    assert np.isfinite(scores).all()
    assert (scores.max(1) == 0).all()


def test_frozen_statistics_stay_frozen(ready: Any) -> None:
    ready.params(train__freeze="batch_norm")
    ready.write_segmenter()
    before = _batch_norms("segmenter.safetensors")
    for kind in ("batch", "fresh"):
        ready.params(train__freeze="batch_norm", cluster__batch_norm=kind)
        cluster.main(CLUSTER)
        found = _batch_norms(CLUSTERED[0])
        assert all(torch.equal(found[name], value) for name, value in before.items()), kind


def test_unit_centroids_of_features_with_a_length_are_refused(ready: Any) -> None:
    ready.params(**EUCLIDEAN)
    ready.write_segmenter()
    ready.params(cluster__unit_centroids=True)
    assert ready.fault(cluster.main, CLUSTER) == (
        "params.yaml: cluster.unit_centroids: must be false after training with train.pixel_loss.metric: "
        "euclidean, where features keep their length"
    )


def test_the_mean_of_an_image_and_its_mirror_image(ready: Any) -> None:
    """STEGO's evaluation: features of both are averaged before they are compared with centroids."""
    ready.params(predict__mirror=True)
    predict.main(PREDICT)
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    centroids = ready.tensors("pixel_centroids.safetensors")[0]["centroids"]
    images = torch.from_numpy(np.load("images/val/images.npy")).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        mean = (segmenter(images) + segmenter(images.flip(3)).flip(3)) / 2
    expected = torch.einsum("ndhw,kd->nkhw", F.normalize(mean), centroids)
    np.testing.assert_allclose(np.load("predictions.npy"), expected, atol=2e-3)


def test_features_of_unit_length_after_upsampling(ready: Any) -> None:
    """STEGO enlarges features to the size of the labels first; the best cluster there is the same."""
    ready.params(predict__unit_features=False)
    predict.main(PREDICT)
    scores = torch.from_numpy(np.load("predictions.npy").astype(np.float32))
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    centroids = ready.tensors("pixel_centroids.safetensors")[0]["centroids"]
    images = torch.from_numpy(np.load("images/val/images.npy")).permute(0, 3, 1, 2).float() / 255
    size = {"size": (64, 64), "mode": "bilinear", "align_corners": False}
    with torch.no_grad():
        feature = segmenter(images)
        stego = torch.einsum("ndhw,kd->nkhw", F.normalize(F.interpolate(feature, **size)), centroids)
    best, second = stego.topk(2, dim=1).values.unbind(1)
    is_clear = best - second > 0.01  # beyond the rounding of float16
    assert is_clear.float().mean() > 0.5
    chosen = F.interpolate(scores, **size).argmax(1)
    assert torch.equal(chosen[is_clear], stego.argmax(1)[is_clear])
    assert scores.abs().max() < 20
    mean_length = feature.norm(dim=1).mean((1, 2))
    expected = torch.einsum("ndhw,kd->nkhw", feature / mean_length[:, None, None, None], centroids)
    torch.testing.assert_close(scores, expected, rtol=2e-3, atol=2e-3)


def test_clusters_of_another_number_are_refused(ready: Any) -> None:
    ready.params(cluster__centroids="first_view", pixel_k=4)
    assert ready.fault(cluster.main, CLUSTER) == (
        "segmenter.safetensors: was trained with 3 clusters, but params.yaml has pixel_k: 4; "
        "run `dvc repro train`, or set cluster.centroids: fresh"
    )


def test_fewer_pixels_than_clusters_are_refused(ready: Any) -> None:
    ready.params(pixel_k=20, cluster__sample_images=2, cluster__sample_pixels=2)
    message = (
        "k-means: 20 clusters need at least as many points, got 2; lower their number (pixel_k, global_k), "
        "or raise that of the points (sample_pixels, init_batches, sample_views)"
    )
    assert ready.fault(cluster.main, CLUSTER) == message


def test_predict_writes_the_cosine_of_each_pixel_to_each_centroid(ready: Any) -> None:
    predict.main(PREDICT)
    scores = np.load("predictions.npy")
    assert (scores.dtype, scores.shape) == (np.float16, (4, 3, 16, 16))
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    images = torch.from_numpy(np.load("images/val/images.npy").astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        feature = segmenter(images).double().numpy()
    centroids = ready.tensors("pixel_centroids.safetensors")[0]["centroids"].double().numpy()
    rng = np.random.default_rng(0)
    for image, k, row, column in zip(*(rng.integers(0, n, 200) for n in scores.shape), strict=True):
        z, mu = feature[image, :, row, column], centroids[k]
        cosine = np.dot(z, mu) / (np.linalg.norm(z) * np.linalg.norm(mu))
        assert float(scores[image, k, row, column]) == pytest.approx(cosine, abs=2e-3)
    assert np.abs(scores).max() <= 1.001


def test_predict_gives_the_same_bytes_twice(ready: Any) -> None:
    predict.main(PREDICT)
    first = ready.hashes("predictions.npy")
    predict.main(PREDICT)
    assert ready.hashes("predictions.npy") == first


def test_predictions_are_those_of_the_images_whatever_the_batch(ready: Any) -> None:
    predict.main(PREDICT)
    plain = np.load("predictions.npy").astype(np.float32)
    ready.params(predict__batch_size=4)
    np.save("images/val/images.npy", np.load("images/val/images.npy")[::-1].copy())
    predict.main(PREDICT)
    np.testing.assert_allclose(np.load("predictions.npy").astype(np.float32), plain[::-1], atol=2e-3)


@pytest.mark.parametrize(("main", "argv"), [(cluster.main, CLUSTER), (predict.main, PREDICT)])
def test_a_network_of_another_version_is_refused(ready: Any, main: Any, argv: list[str]) -> None:
    ready.write_backbone()
    Path("segmenter.safetensors").write_bytes(Path("backbone.safetensors").read_bytes())
    message = ready.fault(main, argv)
    assert message.startswith("segmenter.safetensors: cannot be loaded as a segmenter by this version (")
    assert message.endswith("); delete it and run `dvc repro` to make it again")


def test_centroids_of_another_segmenter_are_refused(ready: Any) -> None:
    def digest() -> str:
        return hashlib.sha256(Path("segmenter.safetensors").read_bytes()).hexdigest()

    cluster.main(CLUSTER)
    old = digest()
    assert ready.tensors("pixel_centroids.safetensors")[1]["segmenter"] == old
    tensors, about = ready.tensors("segmenter.safetensors")
    name = next(name for name in tensors if name.startswith("decoder.") and name.endswith("weight"))
    write_tensors(Path("segmenter.safetensors"), {**tensors, name: tensors[name] * 2}, about)
    assert ready.fault(predict.main, PREDICT) == (
        f"pixel_centroids.safetensors: the clusters were made for another segmenter (SHA-256 {old}) than "
        f"this one ({digest()}); run `dvc repro cluster`"
    )
    cluster.main(CLUSTER)
    predict.main(PREDICT)


def test_centroids_that_name_no_segmenter_are_refused(ready: Any) -> None:
    centroids = Path("pixel_centroids.safetensors")
    write_tensors(centroids, ready.tensors(str(centroids))[0], {})
    message = ready.fault(predict.main, PREDICT)
    assert "made for another segmenter (SHA-256 unknown) than this one (" in message
    assert message.endswith("; run `dvc repro cluster`")


def test_centroids_of_other_features_are_refused(ready: Any) -> None:
    ready.write_centroids(dim=5)
    message = ready.fault(predict.main, PREDICT)
    assert message.startswith("pixel_centroids.safetensors: centroids have 5 features")
    assert not Path("predictions.npy").exists()


def test_a_missing_segmenter_is_named(ready: Any) -> None:
    Path("segmenter.safetensors").unlink()
    assert ready.fault(predict.main, PREDICT) == (
        "segmenter.safetensors: not found; run `dvc repro` to make it"
    )
