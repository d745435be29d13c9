"""Lloyd's k-means in torch, for points on a GPU: no copies to the CPU and no synchronization.

The algorithm is that of faiss, which is used on the CPU: initialization from distinct points, assignment to
the nearest centroid, means, and splitting of large clusters to replace empty ones.
"""

import faiss
import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from stages.core.transfer import send

CPU_BLOCK_POINTS, GPU_BLOCK_POINTS = 1 << 12, 1 << 18  # points at a time, see `blocks`
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
    gain = points.new_zeros((), dtype=torch.float64)
    for _ in range(iterations):
        sums, counts, gain = sum_clusters(points, centroids, spherical=spherical)
        means = sums / counts.clamp_min(1)[:, None]
        means = _split_large(means, counts)
        centroids = _unit(means) if spherical else means
    return centroids, gain if spherical else _sum_of_squares(points) - 2 * gain


def sum_clusters(
    points: Float[Tensor, "N D"], centroids: Float[Tensor, "K D"], *, spherical: bool
) -> tuple[Float[Tensor, "K D"], Int64[Tensor, " K"], Float64[Tensor, ""]]:
    """Sum and count of the points that are nearest to each centroid, without device synchronization.

    The sums repeat their bytes: a CPU adds the points in order, which is faster than a product; on a GPU they
    are products with a one-hot matrix. Ties go to the lower cluster id.

    Args:
        points: to assign.
        centroids: of the clusters.
        spherical: nearest by inner product; otherwise by Euclidean distance.

    Returns:
        Sum of the points of each cluster; their number; the sum over points of the inner product with their
        centroid, less half the centroid's squared length unless `spherical`.
    """
    sums = torch.zeros_like(centroids)
    counts = torch.zeros(len(centroids), dtype=torch.long, device=points.device)
    gain = points.new_zeros((), dtype=torch.float64)
    half_squares = centroids.square().sum(1) / 2
    for block in blocks(points):
        score = block @ centroids.T if spherical else torch.addmm(half_squares, block, centroids.T, beta=-1)
        best, nearest = score.max(1)
        if points.device.type == "cpu":
            sums.index_add_(0, nearest, block)
            counts += count_members(nearest, len(centroids))
        else:
            _add_by_product(sums, counts, block, score.zero_().scatter_(1, nearest[:, None], 1))
        gain += best.double().sum()
    return sums, counts, gain


def _add_by_product(
    sums: Float[Tensor, "K D"],
    counts: Int64[Tensor, " K"],
    points: Float[Tensor, "n D"],
    members: Float[Tensor, "n K"],
) -> None:
    """Add points to the sums and counts of their clusters; `members` is 1 where a point is of a cluster."""
    sums.addmm_(members.T, points)
    counts += members.sum(0).long()  # exact: a block has fewer than 2^24 points


def blocks(points: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "n D"], ...]:
    """Consecutive parts, small enough for what is computed of them: for the caches of a CPU, or a GPU."""
    return points.split(CPU_BLOCK_POINTS if points.device.type == "cpu" else GPU_BLOCK_POINTS)


def count_members(nearest: Int64[Tensor, "..."], num_clusters: int) -> Int64[Tensor, " K"]:
    """Number of each cluster id, without device synchronization."""
    if nearest.device.type == "cpu":
        return torch.bincount(nearest.flatten(), minlength=num_clusters)
    clusters = torch.arange(num_clusters, device=nearest.device)
    return (nearest.flatten()[:, None] == clusters).sum(0)  # `bincount` would wait for the largest id


def _sum_of_squares(points: Float[Tensor, "N D"]) -> Float64[Tensor, ""]:
    return torch.stack([block.square().sum(1).double().sum() for block in blocks(points)]).sum()


def _split_large(means: Float[Tensor, "K D"], counts: Int64[Tensor, " K"]) -> Float[Tensor, "K D"]:
    """The i-th empty cluster takes half of the i-th largest cluster, without device synchronization.

    If more clusters are empty than not, the largest give again, so that all centroids lie at points.
    """
    is_empty = counts == 0
    place = is_empty.cumsum(0) - 1  # index of each empty cluster among the empty ones
    num_donors = (~is_empty).sum().clamp_min(1)
    donor = counts.argsort(descending=True, stable=True)[place.clamp_min(0) % num_donors]
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
    return points[send(torch.from_numpy(order[:num_clusters]).long(), points.device)]
