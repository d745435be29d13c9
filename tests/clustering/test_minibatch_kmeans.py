"""Mini-batch k-means against steps by hand."""

import subprocess
import sys

import pytest
import torch

from stages.clustering import lloyd
from stages.clustering.kmeans import KMeans, MiniBatchKMeans, assign, move_centroids
from stages.clustering.lloyd import count_members
from stages.settings.errors import UserError
from tests.bench.operators import META, Operators
from tests.datasets import REPOSITORY


def _plain(num_clusters: int = 3) -> KMeans:
    return KMeans(num_clusters, iterations=10, restarts=1, spherical=False)


def _kmeans(num_clusters: int = 3, init_batches: int = 2, num_batches: int = 9) -> MiniBatchKMeans:
    return MiniBatchKMeans(
        _plain(num_clusters), init_batches=init_batches, num_batches=num_batches, seeds=[1]
    )


def _points(count: int, seed: int, device: torch.device, dim: int = 4) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).to(device)


def test_nearest_is_by_distance_and_ties_go_to_the_lower_id(device: torch.device) -> None:
    points, centroids = _points(50, 0, device), _points(7, 1, device)
    squares = (points[:, None].double() - centroids[None]).square().sum(2)
    nearest, score = assign(points, centroids, "euclidean")
    assert nearest.tolist() == squares.argmin(1).tolist()
    expected = points.double().square().sum(1) - squares.min(1).values
    torch.testing.assert_close(score.double(), expected, rtol=1e-4, atol=1e-4)
    corners = torch.tensor([[1.0, 0], [-1, 0]], device=device)
    assert assign(torch.zeros(1, 2, device=device), corners, "euclidean")[0].tolist() == [0]


def test_a_step_moves_each_centroid_to_the_mean_of_all_that_it_ever_had(device: torch.device) -> None:
    centroids = torch.tensor([[0.0, 0], [10, 0], [0, 50]], device=device)
    counts = torch.tensor([2, 4, 5], device=device)
    new = torch.tensor([[1.0, 1], [3, 0], [12, 2]], device=device)
    moved = move_centroids(centroids, counts, new).cpu()
    assert counts.tolist() == [4, 5, 5]
    torch.testing.assert_close(moved[0], torch.tensor([(0 * 2 + 1 + 3) / 4, (0 * 2 + 1 + 0) / 4]))
    torch.testing.assert_close(moved[1], torch.tensor([(4 * 10 + 12) / 5, (4 * 0 + 2) / 5]))
    assert moved[2].tolist() == [0, 50], "a cluster without new points stays"


def test_blocks_of_a_batch_add_up(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = _points(500, 0, device), _points(5, 1, device)
    owner = (points[:, None] - centroids).square().sum(2).argmin(1)
    monkeypatch.setattr(lloyd, "CPU_BLOCK_POINTS", 64)
    monkeypatch.setattr(lloyd, "GPU_BLOCK_POINTS", 64)
    sums, counts, _ = lloyd.sum_clusters(points, centroids, spherical=False)
    assert counts.tolist() == [int((owner == cluster).sum()) for cluster in range(5)]
    for cluster in range(5):
        torch.testing.assert_close(sums[cluster], points[owner == cluster].sum(0), rtol=1e-4, atol=1e-4)


def test_sums_repeat_their_bytes(device: torch.device) -> None:
    points, centroids = _points(5000, 0, device), _points(7, 1, device)
    first, second = (lloyd.sum_clusters(points, centroids, spherical=False) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_sums_by_product_are_those_in_order(device: torch.device) -> None:
    """What a GPU does, on every device."""
    points, owner = _points(300, 0, device), torch.arange(300, device=device) % 5 % 4
    sums, counts = torch.ones(6, 4, device=device), torch.ones(6, dtype=torch.long, device=device)
    lloyd._add_by_product(sums, counts, points, torch.nn.functional.one_hot(owner, 6).float())
    assert counts.tolist() == [121, 61, 61, 61, 1, 1]
    for cluster in range(6):
        expected = 1 + points[owner == cluster].double().sum(0)
        torch.testing.assert_close(sums[cluster].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_first_batches_are_clustered_together(device: torch.device) -> None:
    batches = [_points(40, 0, device), _points(25, 1, device)]
    ours = _kmeans()
    for batch in batches:
        ours.add(batch)
    whole = torch.cat(batches)
    expected = _plain(3).fit(whole, seed=1)
    assert torch.equal(ours.centroids()[0], expected)
    assert ours.counts[0].tolist() == count_members(assign(whole, expected, "euclidean")[0], 3).tolist()


def test_each_start_is_a_clustering_of_its_own(device: torch.device) -> None:
    both = MiniBatchKMeans(_plain(), init_batches=2, num_batches=5, seeds=[1, 2])
    alone = [MiniBatchKMeans(_plain(), init_batches=2, num_batches=5, seeds=[seed]) for seed in (1, 2)]
    for seed in range(5):
        for one in (both, *alone):
            one.add(_points(30, seed, device))
    for place, one in enumerate(alone):
        assert torch.equal(both.centroids()[place], one.centroids()[0])
        assert torch.equal(both.counts[place], one.counts[0])
    assert not torch.equal(*both.centroids())


def test_later_batches_count_each_point_once(device: torch.device) -> None:
    ours = _kmeans()
    for seed in range(6):
        ours.add(_points(30, seed, device))
    assert ours.counts[0].sum() == 180
    # Members are what they were when they came, so the mean over all centroids is that of all points.
    mean = (ours.centroids()[0] * ours.counts[0][:, None]).sum(0) / ours.counts[0].sum()
    everything = torch.cat([_points(30, seed, device) for seed in range(6)])
    torch.testing.assert_close(mean, everything.mean(0), rtol=0, atol=0.02)


@pytest.mark.parametrize("num_batches", [1, 5])
def test_fewer_batches_than_it_waits_for_are_clustered_at_the_end(
    device: torch.device, num_batches: int
) -> None:
    ours = _kmeans(init_batches=9, num_batches=num_batches)
    ours.add(_points(20, 0, device))
    assert ours.centroids()[0].shape == (3, 4)
    assert ours.counts[0].sum() == 20


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_points_than_clusters_are_refused(count: int, device: torch.device) -> None:
    ours = _kmeans(num_clusters=5)
    if count:
        ours.add(_points(count, 0, device))
    with pytest.raises(UserError, match=f"5 clusters need at least as many points, got {count}"):
        ours.centroids()[0]


def test_values_that_are_not_finite_are_named(device: torch.device) -> None:
    ours = _kmeans(init_batches=1)
    ours.add(_points(20, 0, device))
    ours.add(torch.full((4, 4), torch.nan, device=device))
    with pytest.raises(UserError, match="the network diverged"):
        ours.centroids()[0]


@pytest.mark.parametrize("num_clusters", [2, 200])
def test_few_and_many_clusters(num_clusters: int, device: torch.device) -> None:
    ours = _kmeans(num_clusters=num_clusters)
    for seed in range(4):
        ours.add(_points(150, seed, device))
    assert ours.centroids()[0].shape == (num_clusters, 4)
    assert torch.isfinite(ours.centroids()[0]).all()
    assert ours.counts[0].sum() == 600


def test_points_that_are_all_alike(device: torch.device) -> None:
    ours = _kmeans()
    for _ in range(4):
        ours.add(torch.ones(10, 4, device=device))
    assert torch.isfinite(ours.centroids()[0]).all()
    assert ours.counts[0].sum() == 40


def test_a_batch_is_added_without_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which has no values that the host could wait for."""

    def fit(kmeans: KMeans, points: torch.Tensor, seed: int) -> torch.Tensor:
        assert points.device == META
        assert len(points) == 80
        return points[: kmeans.num_clusters]

    monkeypatch.setattr(KMeans, "fit", fit)
    ours = _kmeans()
    with Operators() as counted:
        for _ in range(5):
            ours.add(torch.empty(40, 4, device=META))
        counts = count_members(torch.empty(7, 8, dtype=torch.long, device=META), 3)
    assert counted.copies == []
    assert ours.counts[0].device == counts.device == META


@pytest.mark.parametrize("spherical", [True, False])
def test_the_points_of_lloyd_stay_on_the_device(spherical: bool) -> None:
    points = torch.empty(1000, 4, device=META)
    with Operators() as counted:
        start = lloyd.draw_start(points, 3, seed=0)
        centroids, objective = lloyd.lloyd(points, start, iterations=3, spherical=spherical)
    assert counted.copies == ["send"], "the numbers of the first points"
    assert (centroids.shape, objective.shape) == ((3, 4), ())


FILL = r"""
import re
from pathlib import Path
import torch
from stages.clustering.kmeans import KMeans, MiniBatchKMeans

def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

torch.set_num_threads(1)
kmeans = KMeans(4, iterations=1, restarts=1, spherical=False)
warm = MiniBatchKMeans(kmeans, init_batches=1, num_batches=1, seeds=[0])
warm.add(torch.rand(10_000, 64))
before = peak()
clusters = MiniBatchKMeans(kmeans, init_batches=20, num_batches=40, seeds=[0, 1])
for _ in range(40):
    clusters.add(torch.rand(40_000, 64))  # 9.8 MiB
clusters.centroids()
print(peak() - before)
"""


def test_the_first_batches_are_in_memory_once() -> None:
    """Peak of a process of its own: 195 MiB of first batches for two starts, the batch, and small change."""
    command = [sys.executable, "-c", FILL]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert 150 < float(ended.stdout) < 195 + 60, ended.stdout
