"""Lloyd's k-means in torch, for points that live on a GPU: they never leave it, and no step waits for it.

The same algorithm as faiss's, which does the work on CPUs: distinct points as a start, the nearest centroid
of each point, means, and a split of large clusters in place of empty ones.
"""

import faiss
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_POINTS = 1 << 18  # that are assigned at once, so that memory stays bounded
SPLIT = 1 / 1024  # by which the two halves of a split cluster are moved apart (faiss)
RESTART_STEP = 15486557  # between the seeds of two starts (faiss)


@torch.no_grad()
def lloyd(
    points: Float[Tensor, "N D"], start: Float[Tensor, "K D"], *, iterations: int, spherical: bool
) -> tuple[Float[Tensor, "K D"], Float[Tensor, ""]]:
    """Centroids after some iterations, and the objective of the last assignment.

    Args:
        points: float32, finite.
        start: the first centroids.
        iterations: of assignment and update.
        spherical: centroids of unit length, and the nearest by inner product; else plain means, and the
            nearest by Euclidean distance.

    Returns:
        The centroids; the sum over points of the product with their centroid (spherical, higher is better)
        or of the squared distance (lower is better), in float64.
    """
    centroids = _unit(start) if spherical else start
    objective = points.new_zeros((), dtype=torch.float64)
    for _ in range(iterations):
        sums, counts, objective = _sums(points, centroids, spherical=spherical)
        means = sums / counts.clamp_min(1)[:, None]
        means = _split_large(means, counts)
        centroids = _unit(means) if spherical else means
    return centroids, objective


def _sums(
    points: Float[Tensor, "N D"], centroids: Float[Tensor, "K D"], *, spherical: bool
) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"], Float[Tensor, ""]]:
    """Sum and number of the points of each cluster, by products with a one-hot matrix: deterministic."""
    sums, counts = torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
    objective = points.new_zeros((), dtype=torch.float64)
    half_squares = centroids.square().sum(1) / 2
    for block in points.split(BLOCK_POINTS):
        score = block @ centroids.T
        if not spherical:
            score = score - half_squares
        best, nearest = score.max(1)
        members = torch.zeros_like(score).scatter_(1, nearest[:, None], 1)
        sums += members.T @ block
        counts += members.sum(0)
        gain = best if spherical else block.square().sum(1) - 2 * best
        objective += gain.double().sum()
    return sums, counts, objective


def _split_large(means: Float[Tensor, "K D"], counts: Float[Tensor, " K"]) -> Float[Tensor, "K D"]:
    """Empty cluster number i takes a half of the i-th largest cluster; without a wait for the device."""
    is_empty = counts == 0
    place = is_empty.cumsum(0) - 1  # of each empty cluster among them
    donor = counts.argsort(descending=True, stable=True)[place.clamp_min(0)]
    sign = torch.where(torch.arange(means.shape[1], device=means.device) % 2 == 0, 1.0, -1.0) * SPLIT
    is_donor = torch.zeros_like(counts).scatter_add_(0, donor, is_empty.to(counts.dtype)) > 0
    taken = torch.where(is_empty[:, None], means[donor] * (1 + sign), means)
    return torch.where((is_donor & ~is_empty)[:, None], taken * (1 - sign), taken)


def _unit(centroids: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
    return torch.nn.functional.normalize(centroids, dim=1)


def draw_start(
    points: Float[Tensor, "N D"], num_clusters: int, *, seed: int, restart: int = 0
) -> Float[Tensor, "K D"]:
    """The distinct points that faiss starts from: a GPU then finds the clusters that a CPU finds."""
    order = np.empty(len(points), np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), len(points), seed + 1 + restart * RESTART_STEP)  # type: ignore[attr-defined]
    return points[torch.from_numpy(order[:num_clusters]).long().to(points.device)]
