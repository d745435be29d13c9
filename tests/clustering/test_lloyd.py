"""k-means in torch against loops in float64 and against faiss from the same start."""

import faiss
import numpy as np
import pytest
import torch

from stages.clustering.kmeans import KMeans
from stages.clustering.lloyd import draw_start, lloyd


def _blobs(seed: int, spherical: bool, num_points: int = 600, dim: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(5, dim)) * 2
    points = centers[rng.integers(0, 5, num_points)] + rng.normal(0, 0.7, (num_points, dim))
    if spherical:
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32)


def _loops(points: np.ndarray, start: np.ndarray, iterations: int, spherical: bool) -> np.ndarray:
    centroids = start.astype(float)
    for _ in range(iterations):
        groups: list[list[np.ndarray]] = [[] for _ in centroids]
        for point in points.astype(float):
            distances = [((point - one) ** 2).sum() for one in centroids]
            groups[int(np.argmin(distances))].append(point)
        centroids = np.array([np.mean(group, axis=0) for group in groups])
        if spherical:
            centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return centroids


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_lloyds_algorithm(device: torch.device, spherical: bool, seed: int) -> None:
    points = _blobs(seed, spherical, 200)
    start = points[:4]
    found, _ = lloyd(
        torch.from_numpy(points).to(device),
        torch.from_numpy(start).to(device),
        iterations=5,
        spherical=spherical,
    )
    np.testing.assert_allclose(found.cpu(), _loops(points, start, 5, spherical), atol=1e-5)


@pytest.mark.parametrize("spherical", [True, False])
def test_the_objective_is_that_of_faiss_from_the_same_start(device: torch.device, spherical: bool) -> None:
    points = _blobs(0, spherical, 3000, 16)
    start = points[np.random.default_rng(1).choice(len(points), 12, replace=False)]
    kmeans = faiss.Kmeans(
        16, 12, niter=25, spherical=spherical, min_points_per_centroid=1, max_points_per_centroid=10**6
    )
    kmeans.train(points, init_centroids=start)
    tensors = (torch.from_numpy(one).to(device) for one in (points, start))
    _, objective = lloyd(*tensors, iterations=25, spherical=spherical)
    assert objective.item() == pytest.approx(kmeans.obj[-1], rel=1e-3)


def test_empty_clusters_take_halves_of_the_largest(device: torch.device) -> None:
    points = torch.cat([torch.randn(90, 4), torch.randn(10, 4) + 30]).to(device)
    start = torch.cat([torch.zeros(1, 4), torch.full((1, 4), 30.0), torch.full((2, 4), 1e4)]).to(device)
    centroids, _ = lloyd(points, start, iterations=4, spherical=False)
    nearest = torch.cdist(points, centroids).argmin(1)
    assert torch.bincount(nearest, minlength=4).min() > 0


@pytest.mark.parametrize("spherical", [True, False])
def test_more_empty_clusters_than_others_take_points_too(device: torch.device, spherical: bool) -> None:
    points = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(50, 1).to(device)
    centroids, _ = lloyd(points, points[:7], iterations=20, spherical=spherical)
    assert torch.cdist(centroids, points).amin(1).max() < 0.01


def test_blocks_add_up(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.from_numpy(_blobs(2, False)).to(device)
    whole, objective = lloyd(points, points[:6], iterations=3, spherical=False)
    for name in ("CPU_BLOCK_POINTS", "GPU_BLOCK_POINTS"):
        monkeypatch.setattr(f"stages.clustering.lloyd.{name}", 128)
    found, in_blocks = lloyd(points, points[:6], iterations=3, spherical=False)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(in_blocks, objective, rtol=1e-5, atol=0)


def test_a_start_is_of_distinct_points() -> None:
    points = torch.arange(10.0)[:, None]
    start = draw_start(points, 10, seed=3)
    assert sorted(start.flatten().tolist()) == list(range(10))


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_several_starts_end_as_faiss_ends(device: torch.device, spherical: bool, seed: int) -> None:
    points = _blobs(seed, spherical, 900)
    settings = {"iterations": 15, "restarts": 4, "spherical": spherical}
    expected = KMeans(7, **settings).fit(torch.from_numpy(points), seed=seed)
    found = KMeans(7, **settings)._fit(torch.from_numpy(points).to(device), seed)
    np.testing.assert_allclose(found.cpu(), expected, atol=1e-4)
