"""The loss of one pass of images through the network (Eq. 5)."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from stages.core.step import Drawn
from stages.segmenter.network import Segmenter
from stages.settings.schema_train import PixelLoss
from stages.training.guidance import Guidance
from stages.training.losses import ViewClusters, siamese_loss
from stages.training.siamese import Pair, Siamese


class Pass(NamedTuple):
    """Some images of a batch, whose gradient is computed at once."""

    number: int  # from 0
    views: Pair
    targets: tuple[Int[Tensor, "n h w"], Int[Tensor, "n h w"]]  # clusters of the pixels of both views
    shares: Float[Tensor, " 2"] | None  # see `pixel_shares`


class Objective(nn.Module):
    """L = L_pix + lambda L_img, as one module: its backward pass reaches every part of the network once.

    Args:
        segmenter: the network.
        siamese: computes features of views.
        guidance: image loss and its views.
        settings: `train.pixel_loss` of params.yaml.
    """

    def __init__(
        self, segmenter: Segmenter, siamese: Siamese, guidance: Guidance, settings: PixelLoss
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self._siamese, self._guidance, self._settings = siamese, guidance, settings

    def forward(
        self, one: Pass, clusters: Sequence[ViewClusters], image: Float[Tensor, "n 3 H W"], drawn: Drawn
    ) -> tuple[Float[Tensor, ""], list[Float[Tensor, ""]]]:
        """Loss of a pass, and without gradient: within, cross, image loss, accuracy of the head.

        Sums over passes, averaged over processes, are the values of the batch.

        Args:
            one: the pass.
            clusters: of both views.
            image: this process's share of the batch.
            drawn: what guidance has drawn for it, on the device.
        """
        first, second = self._siamese.features_of_both(self.segmenter, one.views)
        pixel, within, cross = siamese_loss(
            (first.pixels, second.pixels),
            one.targets,
            (clusters[0], clusters[1]),
            one.shares,
            temperature=self._settings.temperature,
            cross_weight=self._settings.cross_weight,
            metric=self._settings.metric,
        )
        weighted, guided, accuracy = self._guidance.loss(
            self.segmenter, image, drawn, second.whole_map, one.number
        )
        return pixel + weighted, [figure.detach() for figure in (within, cross, guided, accuracy)]
