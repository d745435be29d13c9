"""Mini-batch k-means against steps by hand."""

import numpy as np
import pytest
import torch

from stages.clustering.kmeans import KMeans, MiniBatchKMeans, move_centroids, nearest
from stages.settings.errors import UserError

CPU = torch.device("cpu")


def _plain(num_clusters: int = 3) -> KMeans:
    return KMeans(num_clusters, iterations=10, restarts=1, device=CPU, spherical=False)


def _kmeans(num_clusters: int = 3, init_batches: int = 2) -> MiniBatchKMeans:
    return MiniBatchKMeans(_plain(num_clusters), init_batches=init_batches, seed=1)


def _points(count: int, seed: int, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def test_nearest_is_by_distance_and_ties_go_to_the_lower_id() -> None:
    points, centroids = _points(50, 0), _points(7, 1)
    distances = ((points[:, None].astype(float) - centroids[None]) ** 2).sum(2)
    assert nearest(points, centroids).tolist() == distances.argmin(1).tolist()
    assert nearest(np.zeros((1, 2), np.float32), np.array([[1, 0], [-1, 0]], np.float32)).tolist() == [0]


def test_a_step_moves_each_centroid_to_the_mean_of_all_that_it_ever_had() -> None:
    centroids = np.array([[0, 0], [10, 0], [0, 50]], np.float32)
    counts = np.array([2, 4, 5])
    new = np.array([[1, 1], [3, 0], [12, 2]], np.float32)
    moved = move_centroids(centroids, counts, new)
    assert counts.tolist() == [4, 5, 5]
    np.testing.assert_allclose(moved[0], (2 * np.array([0, 0]) + [1, 1] + [3, 0]) / 4)
    np.testing.assert_allclose(moved[1], (4 * np.array([10, 0]) + [12, 2]) / 5)
    assert moved[2].tolist() == [0, 50], "a cluster without new points stays"


def test_the_first_batches_are_clustered_together() -> None:
    batches = [_points(40, seed) for seed in range(2)]
    ours = _kmeans()
    for batch in batches:
        ours.add(batch)
    whole = np.concatenate(batches)
    expected = _plain(3).fit(whole, seed=1)
    np.testing.assert_array_equal(ours.centroids(), expected)
    assert ours.counts.tolist() == np.bincount(nearest(whole, expected), minlength=3).tolist()


def test_later_batches_count_each_point_once() -> None:
    ours = _kmeans()
    for seed in range(6):
        ours.add(_points(30, seed))
    assert ours.counts.sum() == 180
    # Members are what they were when they came, so the mean over all centroids is that of all points.
    mean = (ours.centroids() * ours.counts[:, None]).sum(0) / ours.counts.sum()
    everything = np.concatenate([_points(30, seed) for seed in range(6)])
    np.testing.assert_allclose(mean, everything.mean(0), atol=0.02)


def test_fewer_batches_than_it_waits_for_are_clustered_at_the_end() -> None:
    ours = _kmeans(init_batches=9)
    ours.add(_points(20, 0))
    assert ours.centroids().shape == (3, 4)
    assert ours.counts.sum() == 20


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_points_than_clusters_are_refused(count: int) -> None:
    ours = _kmeans(num_clusters=5)
    if count:
        ours.add(_points(count, 0))
    with pytest.raises(UserError, match=f"5 clusters need at least as many points, got {count}"):
        ours.centroids()


def test_values_that_are_not_finite_are_named() -> None:
    ours = _kmeans(init_batches=1)
    ours.add(_points(20, 0))
    ours.add(np.full((4, 4), np.nan, np.float32))
    with pytest.raises(UserError, match="the network has diverged"):
        ours.centroids()


@pytest.mark.parametrize("num_clusters", [2, 200])
def test_few_and_many_clusters(num_clusters: int) -> None:
    ours = _kmeans(num_clusters=num_clusters)
    for seed in range(4):
        ours.add(_points(150, seed))
    assert ours.centroids().shape == (num_clusters, 4)
    assert np.isfinite(ours.centroids()).all()
    assert ours.counts.sum() == 600


def test_points_that_are_all_alike() -> None:
    ours = _kmeans()
    for _ in range(4):
        ours.add(np.ones((10, 4), np.float32))
    assert np.isfinite(ours.centroids()).all()
    assert ours.counts.sum() == 40
