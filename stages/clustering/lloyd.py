"""Lloyd's k-means in torch, for points on a GPU: no copies to the CPU and no synchronization.

The algorithm is that of faiss, which is used on the CPU: initialization from distinct points, assignment to
the nearest centroid, means, and splitting of large clusters to replace empty ones.
"""

import faiss
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_POINTS = 1 << 18  # points per assignment block, to bound memory
SPLIT = 1 / 1024  # relative offset between the halves of a split cluster (faiss)
RESTART_STEP = 15486557  # difference between the seeds of restarts (faiss)


@torch.no_grad()
def lloyd(
    points: Float[Tensor, "N D"], start: Float[Tensor, "K D"], *, iterations: int, spherical: bool
) -> tuple[Float[Tensor, "K D"], Float[Tensor, ""]]:
    """Run Lloyd iterations; return the centroids and the objective of the last assignment.

    Args:
        points: float32, finite.
        start: initial centroids.
        iterations: number of assignment and update steps.
        spherical: unit-length centroids, nearest by inner product; otherwise plain means, nearest by
            Euclidean distance.

    Returns:
        The centroids; the objective in float64: the sum over points of the inner product with their centroid
        (spherical, higher is better) or of the squared distance (lower is better).
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
    """Sum and count of the points of each cluster, by deterministic products with a one-hot matrix."""
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
    """The i-th empty cluster takes half of the i-th largest cluster, without device synchronization."""
    is_empty = counts == 0
    place = is_empty.cumsum(0) - 1  # index of each empty cluster among the empty ones
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
    """The distinct initial points that faiss would choose, so that GPU and CPU find the same clusters."""
    order = np.empty(len(points), np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), len(points), seed + 1 + restart * RESTART_STEP)  # type: ignore[attr-defined]
    return points[torch.from_numpy(order[:num_clusters]).long().to(points.device)]
