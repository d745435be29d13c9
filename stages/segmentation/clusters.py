"""The pixel clusters that one epoch follows: each view's pixels clustered on their own (3)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stages.clustering.kmeans import KMeans
from stages.clustering.minibatch import MiniBatchKMeans
from stages.imaging.source import ImageSource, shuffled
from stages.runtime import distributed
from stages.runtime.generators import torch_generator
from stages.runtime.progress import track
from stages.runtime.schema import Train
from stages.runtime.seeds import faiss_seed
from stages.segmentation.network import Segmenter
from stages.segmentation.siamese import Siamese


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
