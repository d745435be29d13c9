"""One network on both views: pixel features of the same pixels (3)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stages.core import distributed
from stages.core.device import autocast
from stages.imaging.photometric import Jitter, apply_colour, draw_jitter
from stages.imaging.resample import Boxes, resample, whole
from stages.segmenter.network import Segmenter
from stages.segmenter.pixels import Pixels
from stages.settings.schema_train import Train
from stages.settings.section import Photometric


class Plan(NamedTuple):
    """What is random of one pair of views: enough to render either, at any time, to the same bytes."""

    boxes: Boxes
    jitters: tuple[Jitter, Jitter]

    def share(self, device: torch.device) -> "Plan":
        """What of a batch's plan is this process's, on its device."""
        first, second = (
            Jitter(*(distributed.share(part) for part in jitter)).to(device) for jitter in self.jitters
        )
        return Plan(Boxes(*(distributed.share(part) for part in self.boxes)).to(device), (first, second))


class View(NamedTuple):
    """One view of each image.

    Number 0 is cut before the network sees it. Number 1 is whole, and its feature map is cut by `boxes`
    after: the same pixels on two ways (equivariance), in colours of their own (invariance).
    """

    image: Float[Tensor, "N 3 S S"]
    colors: Float[Tensor, "N 3 h w"] | None  # what the context module sees, where that is not the image
    boxes: Boxes | None  # that cut the feature map


class ViewMaker:
    """Draws and renders the pairs of views of one training.

    Args:
        side: range of the cut's side, in image sides.
        flip_probability: of mirroring the cut.
        crop_first: colours and blur after the cut, on what the network sees; else before it, on the stored
            image, as PiCIE does.
        size_px: side of a view.
        strengths: of colours and blur.
        clean_px: side at which the context module sees clean colours; None where it sees the view's.
    """

    def __init__(
        self,
        *,
        side: tuple[float, float],
        flip_probability: float,
        crop_first: bool,
        size_px: int,
        strengths: Photometric,
        clean_px: int | None,
    ) -> None:
        self._side, self._flip_probability, self._crop_first = side, flip_probability, crop_first
        self._size_px, self._strengths, self._clean_px = size_px, strengths, clean_px

    def draw(self, count: int, image: Float[Tensor, "n 3 H W"], generator: torch.Generator) -> Plan:
        """One random pair for each image; the generator is the only source of randomness.

        Args:
            count: images of the whole batch.
            image: this process's share of them.
            generator: the same in every process.
        """
        boxes = draw_boxes(count, self._side, self._flip_probability, generator)
        colored_px = self._size_px if self._crop_first else image.shape[2]
        first, second = (draw_jitter(count, self._strengths, colored_px, generator) for _ in range(2))
        return Plan(boxes, (first, second)).share(image.device)

    def pair(self, image: Float[Tensor, "N 3 H W"], plan: Plan) -> tuple[View, View]:
        """Both views."""
        return self.render(image, plan, 0), self.render(image, plan, 1)

    def render(self, image: Float[Tensor, "N 3 H W"], plan: Plan, number: int) -> View:
        """View `number` of the images; RGB in [0, 1]."""
        uncut = whole(len(image), image.device)
        box, jitter = plan.boxes if number == 0 else uncut, plan.jitters[number]
        size = (self._size_px, self._size_px)
        if self._crop_first:
            view = apply_colour(resample(image, box, size, jitter.blur_sigma_px), jitter)
        else:
            stored = (image.shape[2], image.shape[3])
            view = resample(
                apply_colour(resample(image, uncut, stored, jitter.blur_sigma_px), jitter), box, size
            )
        clean = None if self._clean_px is None else resample(image, box, (self._clean_px, self._clean_px))
        return View(view, clean, None if number == 0 else plan.boxes)


def draw_boxes(
    count: int, side: tuple[float, float], flip_probability: float, generator: torch.Generator
) -> Boxes:
    """Random square boxes, at any place, mirrored or not; `side` is a range in image sides."""
    length = side[0] + (side[1] - side[0]) * torch.rand(count, generator=generator)
    top, left = ((1 - length) * torch.rand(count, generator=generator) for _ in range(2))
    flip = (torch.rand(count, generator=generator) < flip_probability).float()
    return Boxes(top, left, length, length, flip)


def cut_features(feature: Float[Tensor, "N D H W"], boxes: Boxes | None) -> Float[Tensor, "N D H W"]:
    """`boxes` of a feature map, at its own size: the geometric transform of the second view."""
    return feature if boxes is None else resample(feature, boxes, (feature.shape[2], feature.shape[3]))


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
        box = whole(len(image), image.device)
        view = View(resample(image, box, (self._size_px, self._size_px)), None, None)
        return self.features(network, view).pixels
