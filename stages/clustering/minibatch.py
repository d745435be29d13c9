"""Mini-batch k-means over more points than memory holds, as PiCIE clusters pixels."""

import numpy as np
from jaxtyping import Float, Int

from stages.clustering.kmeans import CHUNK_POINTS, KMeans
from stages.runtime.errors import UserError


class MiniBatchKMeans:
    """k-means on the first batches, then one step of every centroid for each batch that follows.

    A centroid moves towards the mean of its new points by their share of all points that it ever had, so
    that no batch counts more than another. A cluster that gets no point stays where it is. Centroids are
    means of what was added, of no particular length. No more than `init_batches` batches are held.

    Args:
        kmeans: that the first centroids come from; K is its own.
        init_batches: batches that it takes.
        seed: of its starting points.
    """

    def __init__(self, kmeans: KMeans, *, init_batches: int, seed: int) -> None:
        self._kmeans, self._init_batches, self._seed = kmeans, init_batches, seed
        self._waiting: list[np.ndarray] = []
        self._centroids: np.ndarray | None = None
        self.counts: Int[np.ndarray, " K"] = np.zeros(kmeans.num_clusters, np.int64)

    def add(self, points: Float[np.ndarray, "N D"]) -> None:
        """Take one batch of points, float32."""
        if self._centroids is not None:
            self._centroids = move_centroids(self._centroids, self.counts, points)
            return
        self._waiting.append(points)
        if len(self._waiting) == self._init_batches:
            self._centroids = self._start()

    def centroids(self) -> Float[np.ndarray, "K D"]:
        """The centroids after all that was added.

        Raises:
            UserError: fewer points than clusters, or a value that is not finite.
        """
        centroids = self._start() if self._centroids is None else self._centroids
        if not np.isfinite(centroids).all():
            raise UserError("k-means: the features hold values that are not finite; the network has diverged")
        return centroids

    def _start(self) -> Float[np.ndarray, "K D"]:
        points = np.concatenate(self._waiting) if self._waiting else np.empty((0, 1), np.float32)
        centroids = self._kmeans.fit(points, seed=self._seed)
        self.counts = np.bincount(nearest(points, centroids), minlength=self._kmeans.num_clusters)
        self._waiting = []
        return centroids


def move_centroids(
    centroids: Float[np.ndarray, "K D"], counts: Int[np.ndarray, " K"], points: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, "K D"]:
    """mu_k + n_k / N_k (mean of its n_k new points - mu_k), N_k with the new ones; `counts` takes them in."""
    assignment = nearest(points, centroids)
    new = np.bincount(assignment, minlength=len(centroids))
    counts += new
    members = np.zeros((len(centroids), len(points)), np.float32)
    members[assignment, np.arange(len(points))] = 1
    sums = members @ points
    used = new > 0
    moved = centroids.copy()
    moved[used] += (sums[used] - new[used, None] * centroids[used]) / counts[used, None]
    return moved


def nearest(points: Float[np.ndarray, "N D"], centroids: Float[np.ndarray, "K D"]) -> Int[np.ndarray, " N"]:
    """The nearest centroid by Euclidean distance; equal distances go to the lower cluster id."""
    half_square = (centroids**2).sum(1) / 2
    chunks = (points[start : start + CHUNK_POINTS] for start in range(0, len(points), CHUNK_POINTS))
    return np.concatenate([(chunk @ centroids.T - half_square).argmax(1) for chunk in chunks])
