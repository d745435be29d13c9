"""`cluster` and `predict` through their command lines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_mutual_info_score

from stages import cluster, predict
from stages.core.artefacts import read_metrics
from stages.segmenter.network import load_segmenter

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
    assert about == {"pixel_k": 3}
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
        {"compat": "picie"},
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
    assert is_unit == (changes not in ({"cluster__unit_centroids": False}, {"compat": "picie"}))
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


def test_clusters_of_another_number_are_refused(ready: Any) -> None:
    ready.params(cluster__centroids="first_view", pixel_k=4)
    assert ready.fault(cluster.main, CLUSTER) == (
        "segmenter.safetensors: was trained with 3 clusters, but params.yaml has pixel_k: 4; "
        "run `dvc repro train`, or set cluster.centroids: fresh"
    )


def test_fewer_pixels_than_clusters_are_refused(ready: Any) -> None:
    ready.params(pixel_k=20, cluster__sample_images=2, cluster__sample_pixels=2)
    message = "k-means: 20 clusters need at least as many points, got 2"
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


@pytest.mark.parametrize(("main", "argv"), [(cluster.main, CLUSTER), (predict.main, PREDICT)])
def test_a_truncated_segmenter_is_named(ready: Any, main: Any, argv: list[str]) -> None:
    path = Path("segmenter.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    message = ready.fault(main, argv)
    assert message.startswith("segmenter.safetensors: not a safetensors file of this project (")


@pytest.mark.parametrize(("main", "argv"), [(cluster.main, CLUSTER), (predict.main, PREDICT)])
def test_a_gpu_that_is_asked_for_and_absent_is_an_error(ready: Any, main: Any, argv: list[str]) -> None:
    ready.params(device="cuda")
    assert ready.fault(main, argv) == (
        f"params.yaml: device: 'cuda' needs a CUDA GPU, but torch {torch.__version__} finds none; "
        "set device: auto or cpu, or install the GPU driver"
    )


def test_centroids_of_other_features_are_refused(ready: Any) -> None:
    ready.write_centroids(dim=5)
    message = ready.fault(predict.main, PREDICT)
    assert message.startswith("pixel_centroids.safetensors: ")
    assert not Path("predictions.npy").exists()


def test_a_missing_segmenter_is_named(ready: Any) -> None:
    Path("segmenter.safetensors").unlink()
    assert ready.fault(predict.main, PREDICT) == (
        "segmenter.safetensors: not found; run `dvc repro` to make it"
    )
