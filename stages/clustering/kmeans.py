"""k-means of points on any device: with faiss on the CPU, with torch on a GPU, where the points stay."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.clustering.lloyd import blocks, draw_start, lloyd, sum_clusters
from stages.settings.errors import UserError
from stages.settings.schema import Label
from stages.settings.schema_train import Cluster, Metric, PixelClustering

DIVERGED = (
    "k-means: some features are not finite: the network diverged; lower train.lr or pretrain.lr, or set "
    "precision: float32"
)


@dataclass(frozen=True)
class KMeans:
    """k-means with fixed settings.

    Args:
        num_clusters: K.
        iterations: number of Lloyd iterations.
        restarts: number of initializations; the run with the best objective is kept.
        spherical: unit-length centroids that maximize the cosine of unit points to their nearest centroid
            (4.2.1). Otherwise plain means that minimize squared distances, as PiCIE does on unit points;
            the tighter a cluster, the longer its centroid.
    """

    num_clusters: int
    _: KW_ONLY
    iterations: int
    restarts: int
    spherical: bool = True

    @classmethod
    def of(
        cls, settings: Label | PixelClustering | Cluster, num_clusters: int, *, spherical: bool = True
    ) -> "KMeans":
        """Build from a section of params.yaml."""
        return cls(
            num_clusters, iterations=settings.iterations, restarts=settings.restarts, spherical=spherical
        )

    @torch.no_grad()
    def fit(self, points: Float[Tensor, "N D"], *, seed: int) -> Float[Tensor, "K D"]:
        """Cluster the points on their device; the seed determines the initialization.

        A large cluster is split to replace an empty one. All points are used: faiss's limit of 256 points
        per centroid is disabled, so the caller chooses the sample.

        Raises:
            UserError: there are fewer points than clusters, or a value is not finite.
        """
        if len(points) < self.num_clusters:
            raise UserError(
                f"k-means: {self.num_clusters} clusters need at least as many points, got {len(points)}; "
                "lower their number (pixel_k, global_k), or raise that of the points (sample_pixels, "
                "init_batches, sample_views)"
            )
        check_finite(points)
        return self._fit_in_faiss(points, seed) if points.device.type == "cpu" else self._fit(points, seed)

    def _fit_in_faiss(self, points: Float[Tensor, "N D"], seed: int) -> Float[Tensor, "K D"]:
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
        kmeans.train(np.ascontiguousarray(points.numpy(), dtype=np.float32))
        return torch.from_numpy(np.array(kmeans.centroids)).to(points.dtype)

    def _fit(self, points: Float[Tensor, "N D"], seed: int) -> Float[Tensor, "K D"]:
        """The best of several starts, each from points of its own."""
        runs = []
        for restart in range(self.restarts):
            start = draw_start(points, self.num_clusters, seed=seed, restart=restart)
            runs.append(lloyd(points, start, iterations=self.iterations, spherical=self.spherical))
        objectives = torch.stack([objective for _, objective in runs])
        return runs[int((objectives if self.spherical else -objectives).argmax())][0]


def check_finite(values: Float[Tensor, "..."], fault: str = DIVERGED) -> None:
    """Wait for the values of a network, and check them without a copy.

    Args:
        values: of any shape.
        fault: the error if one is not finite.

    Raises:
        UserError: one is not finite.
    """
    if not bool(torch.isfinite(torch.stack(values.aminmax())).all()):  # both are NaN if any value is
        raise UserError(fault)


def assign(
    points: Float[Tensor, "N D"], centroids: Float[Tensor, "K D"], metric: Metric
) -> tuple[Int64[Tensor, " N"], Float[Tensor, " N"]]:
    """The most similar centroid and the similarity, on their device; ties go to the lower cluster id.

    dot: z . mu, the cosine if both have unit length. euclidean: 2 z . mu - |mu|^2, the negative squared
    distance plus |z|^2.
    """
    factor, offset = (1.0, 0.0) if metric == "dot" else (2.0, centroids.square().sum(1))
    found = [(factor * (block @ centroids.T) - offset).max(1) for block in blocks(points)]
    return torch.cat([nearest for _, nearest in found]), torch.cat([best for best, _ in found])


class MiniBatchKMeans:
    """Mini-batch k-means: k-means on the first batches, then one centroid update per further batch.

    A centroid moves toward the mean of its new points by their share of all points it has been assigned so
    far, so that all batches have equal weight. A cluster without new points keeps its centroid. Centroids are
    plain means and are not normalized. All work is done on the device of the points, which waits for nothing
    after the first batches; only these are kept, once for all starts.

    Args:
        kmeans: clusters the first batches; also defines K.
        init_batches: number of batches for the initial k-means.
        num_batches: number of batches that will be added.
        seeds: of the initial k-means; each is a clustering of its own, of the same batches.

    Attributes:
        counts: number of points of each cluster, for each seed.
    """

    def __init__(self, kmeans: KMeans, *, init_batches: int, num_batches: int, seeds: Sequence[int]) -> None:
        self._kmeans, self._seeds = kmeans, seeds
        self._init_batches = min(init_batches, num_batches)
        self._first: Float[Tensor, "F D"] | None = None
        self._num_first = self._num_added = 0
        self._centroids: list[Float[Tensor, "K D"]] = []
        self.counts: list[Int64[Tensor, " K"]] = []

    def add(self, points: Float[Tensor, "N D"]) -> None:
        """Add one batch, which is no larger than the first.

        Raises:
            UserError: with the last of the first batches, as `KMeans.fit`.
        """
        self._num_added += 1
        if self._centroids:
            self._centroids = [
                move_centroids(one, counts, points)
                for one, counts in zip(self._centroids, self.counts, strict=True)
            ]
            return
        if self._first is None:
            self._first = points.new_empty(self._init_batches * len(points), points.shape[1])
        self._first[self._num_first : self._num_first + len(points)] = points
        self._num_first += len(points)
        if self._num_added == self._init_batches:
            self._start()

    def centroids(self) -> list[Float[Tensor, "K D"]]:
        """The centroids after all batches, for each seed.

        Raises:
            UserError: there are fewer points than clusters, or a value is not finite.
        """
        if not self._centroids:
            self._start()
        for one in self._centroids:
            check_finite(one)
        return self._centroids

    def _start(self) -> None:
        points = torch.empty(0, 1) if self._first is None else self._first[: self._num_first]
        for seed in self._seeds:
            centroids = self._kmeans.fit(points, seed=seed)
            self._centroids.append(centroids)
            self.counts.append(sum_clusters(points, centroids, spherical=False)[1])
        self._first = None


@torch.no_grad()
def move_centroids(
    centroids: Float[Tensor, "K D"], counts: Int64[Tensor, " K"], points: Float[Tensor, "N D"]
) -> Float[Tensor, "K D"]:
    """mu_k + n_k / N_k (mean of its n_k new points - mu_k), N_k includes the new ones; updates `counts`."""
    sums, new, _ = sum_clusters(points, centroids, spherical=False)
    counts += new
    return centroids + (sums - new[:, None] * centroids) / counts.clamp_min(1)[:, None]
