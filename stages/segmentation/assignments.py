"""Which cluster each pixel of an epoch belongs to, fixed when the epoch starts (3)."""

import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.imaging.source import ImageSource
from stages.runtime import distributed
from stages.runtime.generators import torch_generator
from stages.runtime.progress import track
from stages.segmentation.network import Segmenter
from stages.segmentation.pixels import assign_pixels
from stages.segmentation.siamese import Siamese
from stages.segmentation.views import View

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
