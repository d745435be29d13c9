"""Spherical k-means against a plain Lloyd's algorithm in float64 from many starting points."""

import itertools
import re

import numpy as np
import pytest
import torch

from stages.clustering.agreement import agreement
from stages.clustering.kmeans import KMeans, assign
from stages.settings.errors import UserError


def _unit(points: np.ndarray) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def _bundles(per_bundle: int = 12, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Points about the four corners of a tetrahedron, shuffled, and the corner of each."""
    rng = np.random.default_rng(0)
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    owner = rng.permutation(np.repeat(np.arange(4), per_bundle))
    return _unit(corners[owner] + spread * rng.normal(size=(len(owner), 3))), owner


def _kmeans(points: np.ndarray, num_clusters: int, device: torch.device, **changes: int) -> np.ndarray:
    settings = {"iterations": 30, "restarts": 5, "seed": 1, **changes}
    seed = settings.pop("seed")
    given = torch.from_numpy(points).to(device)
    return KMeans(num_clusters, **settings).fit(given, seed=seed).cpu().numpy()


def _assign(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nearest, score = assign(torch.from_numpy(points), torch.from_numpy(centroids), "dot")
    return nearest.numpy(), score.numpy()


def _objective(points: np.ndarray, centroids: np.ndarray) -> float:
    return sum(max(float(np.dot(point, mu)) for mu in centroids) for point in points.astype(np.float64))


def _plain_lloyd(points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Assign by cosine, average, bring to unit length, until nothing moves; an empty cluster stays."""
    points, centroids = points.astype(np.float64), starts.astype(np.float64).copy()
    for _ in range(100):
        nearest = [int(np.argmax([np.dot(point, mu) for mu in centroids])) for point in points]
        moved = centroids.copy()
        for k in range(len(centroids)):
            members = [point for point, cluster in zip(points, nearest, strict=True) if cluster == k]
            if members:
                total = np.sum(members, axis=0)
                moved[k] = total / np.linalg.norm(total)
        if np.allclose(moved, centroids, atol=1e-12):
            break
        centroids = moved
    return centroids


def test_separated_clusters_are_found(device: torch.device) -> None:
    points, owner = _bundles()
    centroids = _kmeans(points, 4, device)
    nearest, _ = _assign(points, centroids)
    assert len({(a, b) for a, b in zip(owner.tolist(), nearest.tolist(), strict=True)}) == 4
    assert agreement(owner, nearest) == pytest.approx(1)
    for k in range(4):
        mean = points[nearest == k].astype(np.float64).sum(0)
        np.testing.assert_allclose(centroids[k], mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize("num_clusters", [1, 2, 7])
def test_centroids_have_unit_length(num_clusters: int, device: torch.device) -> None:
    points = _unit(np.random.default_rng(1).normal(size=(40, 6)))
    centroids = _kmeans(points, num_clusters, device)
    assert (centroids.shape, centroids.dtype) == ((num_clusters, 6), np.float32)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_is_no_worse_than_that_of_a_plain_lloyd(seed: int, device: torch.device) -> None:
    points = _unit(np.random.default_rng(seed).normal(size=(9, 2)))
    best = max(
        _objective(points, _plain_lloyd(points, points[list(start)]))
        for start in itertools.combinations(range(len(points)), 3)
    )
    found = _objective(points, _kmeans(points, 3, device, restarts=50))
    assert found == pytest.approx(best, rel=1e-3)
    assert found <= best + 1e-4


def test_a_seed_gives_the_same_centroids_and_another_seed_other_ones(device: torch.device) -> None:
    points = _unit(np.random.default_rng(2).normal(size=(60, 5)))
    first = _kmeans(points, 6, device, restarts=1, iterations=3)
    assert first.tobytes() == _kmeans(points, 6, device, restarts=1, iterations=3).tobytes()
    others = [_kmeans(points, 6, device, restarts=1, iterations=3, seed=seed) for seed in (2, 3)]
    assert any(first.tobytes() != other.tobytes() for other in others)


def test_as_many_clusters_as_points_fit_exactly(device: torch.device) -> None:
    points = _unit(np.random.default_rng(3).normal(size=(5, 4)))
    _, score = _assign(points, _kmeans(points, 5, device))
    np.testing.assert_allclose(score, 1, atol=1e-5)


def test_all_points_take_part(device: torch.device) -> None:
    """Without faiss's limit of 256 points for each centroid."""
    points = _unit(np.repeat(np.array([[1.0, 0.0]]), 600, axis=0))
    points[-1] = [0, 1]
    (centroid,) = _kmeans(points, 1, device, restarts=1)
    expected = points.astype(np.float64).sum(0)
    np.testing.assert_allclose(centroid, expected / np.linalg.norm(expected), atol=1e-6)


def test_too_few_points_are_refused(device: torch.device) -> None:
    message = "k-means: 4 clusters need at least as many points, got 3; lower their number (pixel_k, "
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        _kmeans(_unit(np.eye(3)), 4, device)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float, device: torch.device) -> None:
    points = _unit(np.eye(4))
    points[2, 1] = value
    message = (
        "k-means: some features are not finite: the network diverged; lower train.lr or pretrain.lr, or set "
        "precision: float32"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        _kmeans(points, 2, device)


def test_assign() -> None:
    rng = np.random.default_rng(4)
    points, centroids = _unit(rng.normal(size=(20, 3))), _unit(rng.normal(size=(4, 3)))
    nearest, score = _assign(points, centroids)
    for point, cluster, cosine in zip(points.astype(np.float64), nearest, score, strict=True):
        cosines = [float(np.dot(point, mu)) for mu in centroids]
        assert cluster == cosines.index(max(cosines))
        assert cosine == pytest.approx(max(cosines), abs=1e-6)


def test_assign_gives_a_tie_to_the_lower_cluster() -> None:
    points = np.array([[1, 0], [0, 1]], np.float32)
    centroids = np.array([[-1, 0], [1, 0], [1, 0]], np.float32)
    nearest, score = _assign(points, centroids)
    assert nearest.tolist() == [1, 0]
    assert score.tolist() == [1, 0]


def test_agreement_does_not_look_at_names() -> None:
    first = np.array([0, 0, 1, 1, 2, 2, 2])
    assert agreement(first, np.array([5, 5, 0, 0, 3, 3, 3])) == pytest.approx(1)
    rng = np.random.default_rng(5)
    assert abs(agreement(rng.integers(0, 4, 2000), rng.integers(0, 4, 2000))) < 0.02
