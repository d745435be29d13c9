"""The pixel clusters of one epoch: the pixels of each view are clustered separately (3)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int32, UInt8
from torch import Tensor

from stages.clustering.kmeans import KMeans, MiniBatchKMeans, assign
from stages.clustering.lloyd import count_members
from stages.core import distributed
from stages.core.device import torch_generator
from stages.core.memory import memory_for
from stages.core.seeds import faiss_seed
from stages.core.transfer import send
from stages.imaging.batches import ImageSource, shuffled
from stages.runtime.progress import track
from stages.segmenter.network import Segmenter
from stages.segmenter.pixels import assign_pixels
from stages.settings.schema_train import Train
from stages.training.siamese import Pair, Plan, Siamese

KEPT_BYTES = 1 << 28  # most memory for the assignments of an epoch; those of later steps are computed again


class Clustering(NamedTuple):
    """The clusters of one view."""

    centroids: Float[Tensor, "K D"]
    counts: Int[Tensor, " K"]  # number of clustered pixels per cluster


class PixelClusterer:
    """Clusters the pixel features of a frozen network in both views, and assigns pixels to clusters.

    `sample` uses random pixels of random images, in separately drawn views (ours). `minibatch` uses all
    pixels of the epoch's training views, in one pass over the images per view, as PiCIE does; these passes
    also update the running batch-norm statistics.

    Args:
        settings: `train` of params.yaml.
        siamese: renders views and computes features.
        pixel_k: number of clusters K per view.
        seed: seed of all random numbers.
    """

    def __init__(self, settings: Train, siamese: Siamese, *, pixel_k: int, seed: int) -> None:
        self._settings, self._siamese, self._pixel_k, self._seed = settings, siamese, pixel_k, seed
        self._labels: list[UInt8[Tensor, "2 N H W"] | Int32[Tensor, "2 N H W"]] = []  # of the first steps

    @torch.no_grad()
    def cluster(
        self, frozen: Segmenter, images: ImageSource, batches: Sequence[Tensor], epoch: int
    ) -> list[Clustering]:
        """The clusters of both views.

        Args:
            frozen: the network at the start of the epoch.
            images: all training images.
            batches: row indices of the epoch's batches, in order.
            epoch: epoch number.
        """
        self.forget_labels()
        if self._settings.clustering.kmeans == "sample":
            return self._of_sample(frozen, images, epoch)
        return [self._of_all(frozen, images, batches, epoch, view) for view in range(2)]

    @torch.no_grad()
    def assign(
        self, frozen: Segmenter, views: Pair, centroids: Sequence[Float[Tensor, "K D"]]
    ) -> tuple[Int[Tensor, "N H W"], Int[Tensor, "N H W"]]:
        """Assign each pixel of both views to a centroid of its own view (3)."""
        metric = self._settings.clustering.assign
        first, second = (
            assign_pixels(view.pixels, one, metric)
            for view, one in zip(self._siamese.features_of_both(frozen, views), centroids, strict=True)
        )
        return first, second

    @torch.no_grad()
    def assign_images(
        self, frozen: Segmenter, image: Float[Tensor, "N 3 H W"], centroids: Float[Tensor, "K D"]
    ) -> Int[Tensor, "N H W"]:
        """Assign each pixel of whole, unaugmented images to a cluster."""
        pixels = self._siamese.plain_pixels(frozen, image)
        return assign_pixels(pixels, centroids, self._settings.clustering.assign)

    def count_all(
        self,
        frozen: Segmenter,
        images: ImageSource,
        batches: Sequence[Tensor],
        epoch: int,
        centroids: Sequence[Float[Tensor, "K D"]],
    ) -> list[Int[Tensor, " K"]]:
        """Pixel counts of the clusters in both views, from one more pass over the epoch's batches (PiCIE).

        On a CPU the assignments are kept for `kept_labels`, as PiCIE keeps them in files.
        """
        counts = torch.zeros(2, self._pixel_k, dtype=torch.long, device=images.device)
        kept = torch.uint8 if self._pixel_k <= 1 << 8 else torch.int32
        for step, image in enumerate(self._read(images, batches, f"count epoch {epoch + 1}")):
            plan = self._draw(image, batches, epoch, [step])
            # In the passes of a step: batch norm of the frozen network may take its statistics from them.
            pairs = [
                self._siamese.views.pair(image[rows], plan.rows(rows))
                for rows in distributed.passes(len(image), self._settings.micro_batch)
            ]
            passes = [torch.stack(self.assign(frozen, pair, centroids)) for pair in pairs]
            labels = torch.cat(passes, dim=1)
            counts += torch.stack([count_members(one, self._pixel_k) for one in labels])
            if images.device.type == "cpu" and step < KEPT_BYTES // (labels.numel() * kept.itemsize):
                self._labels.append(labels.to(kept))
        return list(distributed.total(counts).cpu())

    def kept_labels(self, step: int) -> tuple[Int[Tensor, "N H W"], Int[Tensor, "N H W"]] | None:
        """What `assign` gives for a step of this epoch, if `count_all` has kept it."""
        if step >= len(self._labels):
            return None
        first, second = self._labels[step].long()
        return first, second

    def forget_labels(self) -> None:
        """Drop what `count_all` has kept; the network or the clusters change."""
        self._labels.clear()

    def _of_sample(self, frozen: Segmenter, images: ImageSource, epoch: int) -> list[Clustering]:
        clustering, size = self._settings.clustering, self._settings.batch_size
        num_images = max(size, min(clustering.sample_images, len(images)) // size * size)
        per_image = min(max(1, clustering.sample_pixels // num_images), self._siamese.feature_px**2)
        order = torch_generator(self._seed, "train", "sample", epoch)
        batches = shuffled(len(images), size, order)[: num_images // size]
        taken: tuple[list[Tensor], list[Tensor]] = ([], [])
        for step, image in enumerate(self._read(images, batches, f"cluster epoch {epoch + 1}")):
            generator = torch_generator(self._seed, "train", "sample", epoch, step)
            plan = self._siamese.views.draw(size, image, generator)
            chances = [torch.rand(size, self._siamese.feature_px**2, generator=generator) for _ in range(2)]
            for view in range(2):
                rendered = self._siamese.views.render(image, plan, view)
                places = distributed.share(chances[view]).topk(per_image).indices.to(image.device)
                chosen = self._siamese.features(frozen, rendered).pixels.at(places)
                taken[view].append(distributed.gather(chosen).flatten(0, 1))
        return [self._of_pixels(torch.cat(taken[view]), epoch, view) for view in range(2)]

    def _of_pixels(self, pixels: Float[Tensor, "P D"], epoch: int, view: int) -> Clustering:
        clustering = self._settings.clustering
        kmeans = KMeans.of(clustering, self._pixel_k, spherical=clustering.unit_centroids)
        centroids = distributed.from_leader(kmeans.fit(pixels, seed=self._kmeans_seed(epoch, view)))
        nearest, _ = assign(pixels, centroids, clustering.assign)
        return Clustering(centroids.cpu(), count_members(nearest, self._pixel_k).cpu())

    @memory_for(
        "lower train.clustering.init_batches, whose features are held at once, batches_per_update or "
        "train.batch_size, or set kmeans: sample",
        "params.yaml: train.clustering: ",
    )
    def _of_all(
        self, frozen: Segmenter, images: ImageSource, batches: Sequence[Tensor], epoch: int, view: int
    ) -> Clustering:
        clustering = self._settings.clustering
        what = f"cluster epoch {epoch + 1}, view {view + 1}"
        size = clustering.batches_per_update
        updates = list(torch.arange(len(batches)).split(size))
        rows = [torch.cat([batches[step] for step in steps]) for steps in updates]
        kmeans = MiniBatchKMeans(
            KMeans.of(clustering, self._pixel_k, spherical=False),
            init_batches=clustering.init_batches,
            num_batches=len(updates),
            seeds=[self._kmeans_seed(epoch, view)],
        )
        for steps, image in zip(updates, self._read(images, rows, what), strict=True):
            plan = self._draw(image, batches, epoch, steps.tolist())
            pixels = self._siamese.features(frozen, self._siamese.views.render(image, plan, view)).pixels
            kmeans.add(distributed.gather(pixels.all()))
        # Processes on other hardware round differently, and k-means makes much of little.
        centroids, counts = (distributed.from_leader(one[0]) for one in (kmeans.centroids(), kmeans.counts))
        if clustering.unit_centroids:
            centroids = F.normalize(centroids, dim=1)
        return Clustering(centroids.cpu(), counts.cpu())

    def _draw(
        self, image: Float[Tensor, "n 3 H W"], batches: Sequence[Tensor], epoch: int, steps: Sequence[int]
    ) -> Plan:
        """The views that training uses in these steps, of this process's share of the images."""
        generators = (torch_generator(self._seed, "train", "views", epoch, step) for step in steps)
        plans = [
            self._siamese.views.draw_all(len(batches[step]), image.shape[2], generator)
            for step, generator in zip(steps, generators, strict=True)
        ]
        return Plan.of(send(Plan.joined(plans).share(), image.device))

    def _read(self, images: ImageSource, batches: Sequence[Tensor], what: str) -> Iterator[Tensor]:
        shares = [distributed.share(rows) for rows in batches]
        return track(images.batches(shares), what, total=len(batches), unit="batch")

    def _kmeans_seed(self, epoch: int, view: int) -> int:
        return faiss_seed(self._seed, "train", "kmeans", epoch, view)
