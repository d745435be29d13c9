"""k-means on faiss, on the GPU where its build fits it, else on the CPU."""

import functools

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int

from stages.runtime.errors import UserError

PROBE_POINTS = 64
CHUNK_POINTS = 1 << 16  # that are assigned at once, so that memory stays bounded


def spherical_kmeans(
    points: Float[np.ndarray, "N D"],
    num_clusters: int,
    *,
    iterations: int,
    restarts: int,
    seed: int,
    device: torch.device,
) -> Float[np.ndarray, "K D"]:
    """Unit centroids that maximise the cosine of unit points to their nearest one (4.2.1).

    A cluster that empties is refilled by splitting a large one (faiss). All points take part: faiss's own
    limit of 256 points a centroid is lifted, so the caller decides the sample.

    Args:
        points: unit length, float32.
        num_clusters: K.
        iterations: of Lloyd's algorithm.
        restarts: from other starting points; the best objective wins.
        seed: of the starting points.
        device: where to work.

    Raises:
        UserError: fewer points than clusters, or a value that is not finite.
    """
    return _kmeans(points, num_clusters, iterations, restarts, seed, device, spherical=True)


def euclidean_kmeans(
    points: Float[np.ndarray, "N D"],
    num_clusters: int,
    *,
    iterations: int,
    restarts: int,
    seed: int,
    device: torch.device,
) -> Float[np.ndarray, "K D"]:
    """Plain means that minimise squared distances, else as `spherical_kmeans`.

    Of unit points this is what PiCIE clusters with: the tighter a cluster, the longer its centroid.
    """
    return _kmeans(points, num_clusters, iterations, restarts, seed, device, spherical=False)


def _kmeans(
    points: Float[np.ndarray, "N D"],
    num_clusters: int,
    iterations: int,
    restarts: int,
    seed: int,
    device: torch.device,
    *,
    spherical: bool,
) -> Float[np.ndarray, "K D"]:
    if len(points) < num_clusters:
        raise UserError(f"k-means: {num_clusters} clusters need at least as many points, got {len(points)}")
    if not np.isfinite(points).all():
        raise UserError("k-means: the features hold values that are not finite; the network has diverged")
    kmeans = faiss.Kmeans(
        points.shape[1],
        num_clusters,
        niter=iterations,
        nredo=restarts,
        seed=seed,
        spherical=spherical,
        gpu=device.type == "cuda" and faiss_gpu_works(),
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    kmeans.train(np.ascontiguousarray(points, dtype=np.float32))
    return np.asarray(kmeans.centroids)


def assign(
    points: Float[np.ndarray, "N D"], centroids: Float[np.ndarray, "K D"]
) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """The nearest centroid by cosine, and the cosine; equal distances go to the lower cluster id."""
    nearest = np.empty(len(points), dtype=np.int64)
    cosine = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), CHUNK_POINTS):
        rows = slice(start, start + CHUNK_POINTS)
        similarity = points[rows] @ centroids.T
        nearest[rows], cosine[rows] = similarity.argmax(axis=1), similarity.max(axis=1)
    return nearest, cosine


@functools.cache
def faiss_gpu_works() -> bool:
    """Whether faiss's GPU code runs here: wheels are built for some GPUs only, and say so when used."""
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        print("faiss: no GPU in this build or on this machine; k-means runs on the CPU", flush=True)
        return False
    try:
        probe = np.eye(PROBE_POINTS, dtype=np.float32)
        faiss.Kmeans(PROBE_POINTS, 2, niter=1, gpu=True, min_points_per_centroid=1).train(probe)
    except RuntimeError as error:
        print(f"faiss: its GPU code does not run here ({error}); k-means runs on the CPU", flush=True)
        return False
    return True
