"""k-means: with faiss on the CPU, with torch on a GPU."""

from dataclasses import KW_ONLY, dataclass

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.clustering.lloyd import draw_start, lloyd
from stages.settings.errors import UserError
from stages.settings.schema import Label
from stages.settings.schema_train import Cluster, PixelClustering

CHUNK_POINTS = 1 << 16  # points per assignment chunk, to bound memory


@dataclass(frozen=True)
class KMeans:
    """k-means with fixed settings.

    Args:
        num_clusters: K.
        iterations: number of Lloyd iterations.
        restarts: number of initializations; the run with the best objective is kept.
        device: compute device.
        spherical: unit-length centroids that maximize the cosine of unit points to their nearest centroid
            (4.2.1). Otherwise plain means that minimize squared distances, as PiCIE does on unit points;
            the tighter a cluster, the longer its centroid.
    """

    num_clusters: int
    _: KW_ONLY
    iterations: int
    restarts: int
    device: torch.device
    spherical: bool = True

    @classmethod
    def of(
        cls,
        settings: Label | PixelClustering | Cluster,
        num_clusters: int,
        device: torch.device,
        *,
        spherical: bool = True,
    ) -> "KMeans":
        """Build from a section of params.yaml."""
        return cls(
            num_clusters,
            iterations=settings.iterations,
            restarts=settings.restarts,
            device=device,
            spherical=spherical,
        )

    def fit(self, points: Float[np.ndarray, "N D"], *, seed: int) -> Float[np.ndarray, "K D"]:
        """Cluster float32 points; the seed determines the initialization.

        A large cluster is split to replace an empty one. All points are used: faiss's limit of 256 points
        per centroid is disabled, so the caller chooses the sample.

        Raises:
            UserError: there are fewer points than clusters, or a value is not finite.
        """
        self._check(len(points), is_finite=bool(np.isfinite(points).all()))
        if self.device.type == "cuda":
            return self._fit_in_torch(torch.from_numpy(points).to(self.device), seed).cpu().numpy()
        kmeans = faiss.Kmeans(
            points.shape[1],
            self.num_clusters,
            niter=self.iterations,
            nredo=self.restarts,
            seed=seed,
            spherical=self.spherical,
            min_points_per_centroid=1,
            max_points_per_centroid=len(points),
        )
        kmeans.train(np.ascontiguousarray(points, dtype=np.float32))
        return np.asarray(kmeans.centroids)

    def fit_on(self, points: Float[Tensor, "N D"], *, seed: int) -> Float[Tensor, "K D"]:
        """Like `fit`, for torch tensors; points on a GPU stay there.

        Raises:
            UserError: as `fit`.
        """
        if points.device.type == "cpu":
            return torch.from_numpy(self.fit(points.numpy(), seed=seed)).float()
        self._check(len(points), is_finite=bool(torch.isfinite(points).all()))
        return self._fit_in_torch(points, seed)

    def _fit_in_torch(self, points: Float[Tensor, "N D"], seed: int) -> Float[Tensor, "K D"]:
        """The best of several starts, each from points of its own."""
        runs = []
        for restart in range(self.restarts):
            start = draw_start(points, self.num_clusters, seed=seed, restart=restart)
            runs.append(lloyd(points, start, iterations=self.iterations, spherical=self.spherical))
        objectives = torch.stack([objective for _, objective in runs])
        return runs[int((objectives if self.spherical else -objectives).argmax())][0]

    def _check(self, count: int, *, is_finite: bool) -> None:
        if count < self.num_clusters:
            raise UserError(
                f"k-means: {self.num_clusters} clusters need at least as many points, got {count}"
            )
        if not is_finite:
            raise UserError("k-means: some features are not finite; the network has diverged")


def assign(
    points: Float[np.ndarray, "N D"], centroids: Float[np.ndarray, "K D"], metric: str = "dot"
) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """The most similar centroid and the similarity; ties go to the lower cluster id.

    dot: z . mu, the cosine if both have unit length. euclidean: 2 z . mu - |mu|^2, the negative squared
    distance plus |z|^2.
    """
    factor, offset = (1.0, 0.0) if metric == "dot" else (2.0, (centroids**2).sum(1))
    nearest = np.empty(len(points), dtype=np.int64)
    best = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), CHUNK_POINTS):
        rows = slice(start, start + CHUNK_POINTS)
        similarity = factor * (points[rows] @ centroids.T) - offset
        nearest[rows], best[rows] = similarity.argmax(axis=1), similarity.max(axis=1)
    return nearest, best


class MiniBatchKMeans:
    """Mini-batch k-means: k-means on the first batches, then one centroid update per further batch.

    A centroid moves toward the mean of its new points by their share of all points it has been assigned so
    far, so that all batches have equal weight. A cluster without new points keeps its centroid. Centroids are
    plain means and are not normalized. At most `init_batches` batches are kept in memory.

    Args:
        kmeans: clusters the first batches; also defines K.
        init_batches: number of batches for the initial k-means.
        seed: seed of the initial k-means.
    """

    def __init__(self, kmeans: KMeans, *, init_batches: int, seed: int) -> None:
        self._kmeans, self._init_batches, self._seed = kmeans, init_batches, seed
        self._waiting: list[np.ndarray] = []
        self._centroids: np.ndarray | None = None
        self.counts: Int[np.ndarray, " K"] = np.zeros(kmeans.num_clusters, np.int64)

    def add(self, points: Float[np.ndarray, "N D"]) -> None:
        """Add one batch of float32 points."""
        if self._centroids is not None:
            self._centroids = move_centroids(self._centroids, self.counts, points)
            return
        self._waiting.append(points)
        if len(self._waiting) == self._init_batches:
            self._centroids = self._start()

    def centroids(self) -> Float[np.ndarray, "K D"]:
        """The centroids after all added batches.

        Raises:
            UserError: there are fewer points than clusters, or a value is not finite.
        """
        centroids = self._start() if self._centroids is None else self._centroids
        if not np.isfinite(centroids).all():
            raise UserError("k-means: some features are not finite; the network has diverged")
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
    """mu_k + n_k / N_k (mean of its n_k new points - mu_k), N_k includes the new ones; updates `counts`."""
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
    """The nearest centroid by Euclidean distance; ties go to the lower cluster id."""
    half_square = (centroids**2).sum(1) / 2
    chunks = (points[start : start + CHUNK_POINTS] for start in range(0, len(points), CHUNK_POINTS))
    return np.concatenate([(chunk @ centroids.T - half_square).argmax(1) for chunk in chunks])
