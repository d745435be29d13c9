"""One network on both views: pixel features of the same pixels (3)."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from stages.imaging.resample import resample, whole
from stages.runtime.device import autocast
from stages.runtime.schema import Train
from stages.segmentation.network import Segmenter
from stages.segmentation.pixels import Pixels
from stages.segmentation.views import View, ViewMaker, cut_features


class Features(NamedTuple):
    """What a network makes of one view."""

    pixels: Pixels  # in the frame of the cut, float32
    whole_map: Float[Tensor, "N D H W"]  # F' of all that the network saw


class Siamese:
    """How views are made of images, and features of views, in one training.

    Args:
        settings: `train` of params.yaml.
        size_px: side of the image that the network sees.
        precision: of the forward passes.
    """

    def __init__(self, settings: Train, *, size_px: int, precision: str) -> None:
        self._size_px, self._precision = size_px, precision
        self._is_unit = settings.pixel_loss.metric != "euclidean"
        context, (low, high) = settings.context, settings.crop_side
        sees_clean = context.image == "clean" and context.similarity != "none"
        self.views = ViewMaker(
            side=(low, high),
            flip_probability=settings.flip_probability,
            crop_first=settings.crop_first,
            size_px=size_px,
            strengths=settings.photometric,
            clean_px=size_px // context.stride if sees_clean else None,
        )
        self.feature_px = size_px // settings.feature_stride

    def features(self, network: Segmenter, view: View) -> Features:
        """Pixel features of one view: units, or as they are for the euclidean metric."""
        with autocast(view.image.device, self._precision):
            whole_map = network(view.image, view.colors)
        cut = cut_features(whole_map.float(), view.boxes)
        return Features(Pixels.of_map(cut, is_unit=self._is_unit), whole_map)

    def plain_pixels(self, network: Segmenter, image: Float[Tensor, "N 3 H W"]) -> Pixels:
        """Pixel features of whole images in their own colours."""
        box = whole(len(image)).to(image.device)
        view = View(resample(image, box, (self._size_px, self._size_px)), None, None)
        return self.features(network, view).pixels
