"""The pixel clusters that one epoch follows: each view's pixels clustered on their own (3)."""

import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stages.clustering.kmeans import KMeans, MiniBatchKMeans
from stages.core import distributed
from stages.core.device import torch_generator
from stages.core.seeds import faiss_seed
from stages.imaging.batches import ImageSource, shuffled
from stages.runtime.progress import track
from stages.segmenter.network import Segmenter
from stages.segmenter.pixels import assign_pixels
from stages.settings.schema_train import Train
from stages.training.siamese import Siamese, View

Targets = tuple[Int[Tensor, "N H W"], Int[Tensor, "N H W"]]


class FrozenAssignments:
    """Assigns each batch while its successor trains: no label is ever stored (ours).

    Args:
        frozen: the network at the start of the epoch.
        siamese: how features of views are made.
        centroids: of both views.
        metric: of the assignment.
    """

    def __init__(
        self, frozen: Segmenter, siamese: Siamese, centroids: tuple[Tensor, Tensor], metric: str
    ) -> None:
        self._frozen, self._siamese, self._centroids, self._metric = frozen, siamese, centroids, metric

    @torch.no_grad()
    def targets(self, views: tuple[View, View], step: int) -> Targets:
        """Cluster ids of the pixels of both views."""
        first, second = (self.of_view(view, number) for number, view in enumerate(views))
        return first, second

    def of_view(self, view: View, number: int) -> Int[Tensor, "N H W"]:
        """Cluster ids of one view's pixels among its own centroids."""
        pixels = self._siamese.features(self._frozen, view).pixels
        return assign_pixels(pixels, self._centroids[number], self._metric)

    def of_images(self, image: Float[Tensor, "N 3 H W"]) -> Int[Tensor, "N H W"]:
        """Cluster ids of whole images in their own colours, among the second view's centroids."""
        pixels = self._siamese.plain_pixels(self._frozen, image)
        return assign_pixels(pixels, self._centroids[1], self._metric)


class StoredAssignments:
    """All labels of an epoch, written to disk before it by one pass for each view, as PiCIE does.

    The same numbers as `FrozenAssignments`, for comparing costs; uint8, a byte for each pixel of both
    views, in a nameless file that goes with this object.

    Args:
        frozen: what assigns.
        siamese: how views are made.
        images: all training images.
        batches: those of the epoch, in their order.
        seed: of the views.
        epoch: its number.
    """

    def __init__(
        self,
        frozen: FrozenAssignments,
        siamese: Siamese,
        images: ImageSource,
        batches: Sequence[Tensor],
        *,
        seed: int,
        epoch: int,
    ) -> None:
        side, self._device = siamese.feature_px, images.device
        shares = [distributed.share(rows) for rows in batches]
        shape = (2, len(batches), len(shares[0]), side, side)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as this object
        self._labels = np.memmap(self._file, np.uint8, "w+", shape=shape)
        for number in range(2):
            source = track(images.batches(shares), f"labels of view {number + 1}", total=len(batches))
            for step, image in enumerate(source):
                generator = torch_generator(seed, "train", "views", epoch, step)
                plan = siamese.views.draw(len(batches[step]), image, generator)
                with torch.no_grad():
                    labels = frozen.of_view(siamese.views.render(image, plan, number), number)
                self._labels[number, step] = labels.cpu().numpy()

    def targets(self, views: tuple[View, View], step: int) -> Targets:
        """Cluster ids of the pixels of both views, as stored for this step."""
        first, second = (
            torch.from_numpy(self._labels[number, step].astype(np.int64)).to(self._device)
            for number in range(2)
        )
        return first, second

    def counts(self, num_clusters: int) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]]:
        """Pixels of each cluster in both views."""
        sizes = np.zeros((2, num_clusters), np.int64)
        for number, step in np.ndindex(self._labels.shape[:2]):
            sizes[number] += np.bincount(self._labels[number, step].ravel(), minlength=num_clusters)
        first, second = distributed.total(torch.from_numpy(sizes).to(self._device)).cpu()
        return first, second


Assignments = FrozenAssignments | StoredAssignments


class Clustering(NamedTuple):
    """The clusters of one view."""

    centroids: Float[Tensor, "K D"]
    counts: Int[Tensor, " K"]  # of the pixels that were clustered


class PixelClusterer:
    """Clusters what a frozen network makes of both views.

    `sample` takes random pixels of random images, views of their own (ours); `minibatch` every pixel of
    the epoch's own views, as PiCIE does. With the schedule `multi_pass` each view is a pass over the
    images of its own; the numbers are the same.

    Args:
        settings: `train` of params.yaml.
        siamese: how views and features are made.
        pixel_k: K, in each view.
        seed: of everything random.
    """

    def __init__(self, settings: Train, siamese: Siamese, *, pixel_k: int, seed: int) -> None:
        self._settings, self._siamese, self._pixel_k, self._seed = settings, siamese, pixel_k, seed

    @torch.no_grad()
    def cluster(
        self, frozen: Segmenter, images: ImageSource, batches: Sequence[Tensor], epoch: int
    ) -> tuple[Clustering, Clustering]:
        """The clusters of both views.

        Args:
            frozen: the network at the start of the epoch.
            images: all training images.
            batches: those of the epoch, in their order.
            epoch: its number.
        """
        both = ((0, 1),) if self._settings.clustering.schedule == "frozen_copy" else ((0,), (1,))
        clusterings: list[Clustering] = []
        for views in both:
            if self._settings.clustering.kmeans == "sample":
                clusterings += self._of_sample(frozen, images, epoch, views)
            else:
                clusterings += self._of_all(frozen, images, batches, epoch, views)
        return clusterings[0], clusterings[1]

    def _of_sample(
        self, frozen: Segmenter, images: ImageSource, epoch: int, views: Sequence[int]
    ) -> list[Clustering]:
        clustering, size = self._settings.clustering, self._settings.batch_size
        num_images = max(size, min(clustering.sample_images, len(images)) // size * size)
        per_image = min(max(1, clustering.sample_pixels // num_images), self._siamese.feature_px**2)
        order = torch_generator(self._seed, "train", "sample", epoch)
        batches = shuffled(len(images), size, order)[: num_images // size]
        taken: dict[int, list[Tensor]] = {view: [] for view in views}
        for step, image in enumerate(self._read(images, batches, epoch)):
            generator = torch_generator(self._seed, "train", "sample", epoch, step)
            plan = self._siamese.views.draw(size, image, generator)
            chances = [torch.rand(size, self._siamese.feature_px**2, generator=generator) for _ in range(2)]
            for view in views:
                rendered = self._siamese.views.render(image, plan, view)
                places = distributed.share(chances[view]).topk(per_image).indices.to(image.device)
                chosen = self._siamese.features(frozen, rendered).pixels.at(places)
                taken[view].append(distributed.gather(chosen).flatten(0, 1).cpu())
        return [self._of_pixels(torch.cat(taken[view]), epoch, view, images.device) for view in views]

    def _of_pixels(
        self, pixels: Float[Tensor, "P D"], epoch: int, view: int, device: torch.device
    ) -> Clustering:
        clustering = self._settings.clustering
        kmeans = KMeans.of(clustering, self._pixel_k, device, spherical=clustering.unit_centroids)
        found = torch.from_numpy(kmeans.fit(pixels.numpy(), seed=self._kmeans_seed(epoch, view)))
        centroids = distributed.from_leader(found.float().to(device)).cpu()
        product = pixels @ centroids.T
        logits = product if clustering.assign == "dot" else 2 * product - centroids.square().sum(1)
        return Clustering(centroids, torch.bincount(logits.argmax(1), minlength=self._pixel_k))

    def _of_all(
        self,
        frozen: Segmenter,
        images: ImageSource,
        batches: Sequence[Tensor],
        epoch: int,
        views: Sequence[int],
    ) -> list[Clustering]:
        clustering = self._settings.clustering
        kmeans = KMeans.of(clustering, self._pixel_k, images.device, spherical=False)
        running = {
            view: MiniBatchKMeans(
                kmeans,
                init_batches=clustering.init_batches,
                seed=self._kmeans_seed(epoch, view),
            )
            for view in views
        }
        for step, image in enumerate(self._read(images, batches, epoch)):
            generator = torch_generator(self._seed, "train", "views", epoch, step)
            plan = self._siamese.views.draw(len(batches[step]), image, generator)
            for view in views:
                rendered = self._siamese.views.render(image, plan, view)
                pixels = self._siamese.features(frozen, rendered).pixels
                running[view].add(distributed.gather(pixels.all()).cpu().numpy())
        clusterings = []
        for view in views:
            centroids = torch.from_numpy(running[view].centroids()).float()
            if clustering.unit_centroids:
                centroids = F.normalize(centroids, dim=1)
            clusterings.append(Clustering(centroids, torch.from_numpy(running[view].counts.astype(np.int64))))
        return clusterings

    def _read(self, images: ImageSource, batches: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        shares = [distributed.share(rows) for rows in batches]
        return track(images.batches(shares), f"cluster epoch {epoch + 1}", total=len(batches), unit="batch")

    def _kmeans_seed(self, epoch: int, view: int) -> int:
        return faiss_seed(self._seed, "train", "kmeans", epoch, view)
