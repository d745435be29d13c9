"""`label` through its command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import label
from stages.core.artefacts import read_metrics

OUTPUTS = ("labels.safetensors", "label.json")
ARGV = ["--embeddings", "embeddings.npy", "--backbone", "backbone.safetensors"]
ARGV += ["--out", OUTPUTS[0], "--metrics", OUTPUTS[1]]


@pytest.fixture
def ready(bench: Any) -> Any:
    """Embeddings of 16 images about four directions, the crops of an image a little off the whole."""
    rng = np.random.default_rng(0)
    embeddings = np.eye(8)[np.arange(16) % 4][:, None] + 0.05 * rng.normal(size=(16, 6, 8))
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)
    np.save("embeddings.npy", embeddings.astype(np.float32))
    bench.write_backbone()
    return bench


def test_writes_centroids_labels_and_scores(ready: Any) -> None:
    label.main(ARGV)
    tensors, about = ready.tensors(OUTPUTS[0])
    assert about == {"global_k": 4, "centres": "kmeans"}
    described = {name: (str(value.dtype), tuple(value.shape)) for name, value in tensors.items()}
    assert described == {
        "centroids": ("torch.float32", (4, 8)),
        "pseudo_label": ("torch.int64", (16, 6)),
        "score": ("torch.float32", (16, 6)),
    }
    centroids = tensors["centroids"].double().numpy()
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    embeddings = np.load("embeddings.npy").astype(np.float64)
    for image in range(16):
        for view in range(6):
            cosines = [float(np.dot(embeddings[image, view], mu)) for mu in centroids]
            assert int(tensors["pseudo_label"][image, view]) == int(np.argmax(cosines))
            assert float(tensors["score"][image, view]) == pytest.approx(max(cosines), abs=1e-6)
    # Images of a direction are a cluster, with all their views.
    clusters = {tuple(tensors["pseudo_label"][direction::4].flatten().tolist()) for direction in range(4)}
    assert len(clusters) == 4
    assert all(len(set(cluster)) == 1 for cluster in clusters)


def test_metrics_are_those_of_the_clusters(ready: Any) -> None:
    label.main(ARGV)
    figures = read_metrics(Path(OUTPUTS[1]))
    assert list(figures) == ["label"]
    score = ready.tensors(OUTPUTS[0])[0]["score"].double()
    assert figures["label"] == {
        "centres": "kmeans",
        "effective_clusters": pytest.approx(4, abs=1e-5),
        "mean_score": pytest.approx(float(score.mean()), abs=1e-5),
        "stability": pytest.approx(1, abs=1e-5),
        "agreement_with_position": pytest.approx(0, abs=0.1),
        "agreement_with_order": pytest.approx(0, abs=0.4),  # the four directions take turns
    }


def test_weak_pseudo_labels_are_named_before_training(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    label.main(ARGV)
    assert "warning" not in capsys.readouterr().err
    embeddings = np.load("embeddings.npy")
    np.save("embeddings.npy", embeddings[np.argsort(np.arange(16) % 4, kind="stable")])
    label.main(ARGV)
    assert "label: warning: pseudo-labels follow the file order (1.00)" in capsys.readouterr().err
    rng = np.random.default_rng(1)
    by_place = np.eye(8)[np.arange(6) % 4][None] + 0.01 * rng.normal(size=(16, 6, 8))
    np.save("embeddings.npy", by_place.astype(np.float32))
    ready.params(label__fit_views="all")
    label.main(ARGV)
    assert "label: warning: pseudo-labels follow the position of the view (" in capsys.readouterr().err
    assert read_metrics(Path(OUTPUTS[1]))["label"]["agreement_with_position"] > 0.3
    noise = rng.normal(size=(16, 6, 8))
    noise /= np.linalg.norm(noise, axis=2, keepdims=True)
    np.save("embeddings.npy", noise.astype(np.float32))
    ready.params(label__iterations=1, label__restarts=1, label__weak__stability_below=1.0)
    label.main(ARGV)
    assert "label: warning: a second clustering agrees by only " in capsys.readouterr().err


def test_pseudo_labels_that_few_views_share_are_named(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings = np.eye(8)[np.maximum(np.arange(16) - 12, 0)][:, None].repeat(6, 1)  # 13 of 16 images alike
    np.save("embeddings.npy", embeddings.astype(np.float32))
    label.main(ARGV)
    shares = np.bincount(ready.tensors(OUTPUTS[0])[0]["pseudo_label"].flatten()) / 96
    used = float(np.exp(-sum(share * np.log(share) for share in shares if share)))
    assert 1 < used < 2.2
    said = f"label: warning: only {used:.1f} of 4 pseudo-labels are effectively in use; pretrain longer"
    for limit, is_weak in ((used / 4 - 0.01, False), (used / 4 + 0.01, True)):
        ready.params(label__weak__used_below=limit)
        capsys.readouterr()
        label.main(ARGV)
        assert (said in capsys.readouterr().err) == is_weak


def test_the_same_inputs_give_the_same_bytes(ready: Any) -> None:
    label.main(ARGV)
    first = ready.hashes(*OUTPUTS)
    label.main(ARGV)
    assert ready.hashes(*OUTPUTS) == first


def test_centroids_are_fitted_to_whole_images_or_to_all_views(ready: Any) -> None:
    embeddings = np.load("embeddings.npy")
    embeddings[:, 1:] = np.eye(8)[7]  # all crops look alike
    np.save("embeddings.npy", embeddings.astype(np.float32))

    def nearest_to_the_crops() -> float:
        return float(ready.tensors(OUTPUTS[0])[0]["centroids"][:, 7].max())

    label.main(ARGV)
    assert nearest_to_the_crops() < 0.2
    ready.params(label__fit_views="all")
    label.main(ARGV)
    assert nearest_to_the_crops() > 0.9


@pytest.mark.parametrize("fit_views", ["whole", "all"])
def test_centroids_are_fitted_to_a_sample(ready: Any, fit_views: str) -> None:
    """With as many views as clusters, each view is a centroid."""
    embeddings = np.load("embeddings.npy")[:, : 1 if fit_views == "whole" else 6].reshape(-1, 8)
    chosen = set()
    for seed in (0, 1):
        ready.params(seed=seed, label__fit_views=fit_views, label__sample_views=4)
        label.main(ARGV)
        centroids = ready.tensors(OUTPUTS[0])[0]["centroids"].numpy()
        cosine = centroids @ embeddings.T
        np.testing.assert_allclose(cosine.max(1), 1, atol=1e-5)
        chosen.add(frozenset(cosine.argmax(1).tolist()))
    assert [len(views) for views in chosen] == [4, 4]
    ready.params(label__sample_views=3)
    assert "label.sample_views: 3); lower global_k" in ready.fault(label.main, ARGV)


def test_more_clusters_than_views_are_refused(ready: Any) -> None:
    ready.params(global_k=17)
    assert ready.fault(label.main, ARGV) == (
        "params.yaml: global_k: 17 clusters need at least as many views, but there are 16 "
        "(label.fit_views: whole, label.sample_views: 50000); lower global_k, or add images"
    )
    ready.params(global_k=17, label__fit_views="all")
    label.main(ARGV)
    assert ready.tensors(OUTPUTS[0])[0]["centroids"].shape == (17, 8)


def test_features_that_are_not_finite_are_refused(ready: Any) -> None:
    np.save("embeddings.npy", np.full((16, 6, 8), np.nan, np.float32))
    assert ready.fault(label.main, ARGV) == (
        "label: some features are not finite; the network of `pretrain` has diverged; lower pretrain.lr, or "
        "set precision: float32"
    )
