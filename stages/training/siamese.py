"""Siamese views: one network computes features of the same pixels in two views (3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stages.core import distributed
from stages.core.device import autocast
from stages.core.transfer import send
from stages.imaging.photometric import Jitter, apply_colour, jitter_from, no_jitter, num_jitter_draws
from stages.imaging.resample import Boxes, resample, unstacked, whole
from stages.segmenter.network import Segmenter
from stages.segmenter.pixels import Pixels
from stages.settings.schema_train import Train
from stages.settings.section import Photometric


class Plan(NamedTuple):
    """The random parameters of a pair of views; each view can be rendered from them reproducibly."""

    boxes: Boxes
    jitters: tuple[Jitter, Jitter]

    @classmethod
    def joined(cls, plans: Sequence["Plan"]) -> "Plan":
        """The plan of several batches after one another."""
        boxes = Boxes(*map(torch.cat, zip(*(plan.boxes for plan in plans), strict=True)))
        first, second = (
            Jitter(*map(torch.cat, zip(*(plan.jitters[view] for plan in plans), strict=True)))
            for view in range(2)
        )
        return cls(boxes, (first, second))

    @classmethod
    def of(cls, numbers: Float[Tensor, "R n"]) -> "Plan":
        """The plan that `share` gave."""
        rows = iter(numbers.unbind())
        return cls(unstacked(Boxes, rows), (unstacked(Jitter, rows), unstacked(Jitter, rows)))

    def share(self) -> Float[Tensor, "R n"]:
        """This process's share of the plan in one tensor."""
        numbers = torch.stack([*self.boxes, *self.jitters[0], *self.jitters[1]])
        return distributed.share(numbers, dim=1).contiguous()

    def rows(self, rows: slice) -> "Plan":
        """The plan of some of the images."""
        first, second = (Jitter(*(part[rows] for part in jitter)) for jitter in self.jitters)
        return Plan(self.boxes.select(rows), (first, second))

    def both(self) -> tuple[Boxes, Jitter]:
        """The first view of every image, then the second: boxes of what each shows, and colors."""
        first, second = self.jitters
        uncut = whole(len(self.boxes.top), self.boxes.top.device)
        numbers = torch.stack([*self.boxes, *first, *uncut, *second]).view(2, -1, len(self.boxes.top))
        rows = iter(numbers.transpose(0, 1).flatten(1).unbind())
        return unstacked(Boxes, rows), unstacked(Jitter, rows)


class View(NamedTuple):
    """One view of each image.

    View 0 is cropped before the network. View 1 is the whole image, and its feature map is cropped by
    `boxes`: the same pixels in both (equivariance), each view with its own colors (invariance).
    """

    image: Float[Tensor, "N 3 S S"]
    colors: Float[Tensor, "N 3 h w"] | None  # input of the context module if different from the image
    boxes: Boxes | None  # crop of the feature map


class Pair(NamedTuple):
    """Both views of each image: all of the first, then all of the second."""

    images: Float[Tensor, "M 3 S S"]
    colors: Float[Tensor, "M 3 h w"] | None  # as of `View`, likewise `boxes` of the second
    boxes: Boxes


class ViewMaker:
    """Draws and renders the pairs of views of one training run.

    Args:
        side: range of the crop side, in image sides.
        flip_probability: probability of mirroring the crop.
        crop_first: apply colors and blur after the crop, on the network input; otherwise before it, on the
            stored image, as PiCIE does.
        size_px: side of a view.
        strengths: strengths of colors and blur.
        color_views: views whose colors change in training: both, or the second, as in PiCIE's code on
            Cityscapes; the first then changes only where its pixels are clustered and assigned.
        clean_px: side of the unaugmented image for the context module; None to use the view's colors.
    """

    def __init__(
        self,
        *,
        side: tuple[float, float],
        flip_probability: float,
        crop_first: bool,
        size_px: int,
        strengths: Photometric,
        color_views: str,
        clean_px: int | None,
    ) -> None:
        self._side, self._flip_probability, self._crop_first = side, flip_probability, crop_first
        self._size_px, self._strengths, self._clean_px = size_px, strengths, clean_px
        self._colors_first = color_views == "both"

    def draw(self, count: int, image: Float[Tensor, "n 3 H W"], generator: torch.Generator) -> Plan:
        """Draw one random pair per image; the generator is the only source of randomness.

        Args:
            count: images of the whole batch.
            image: this process's share of them.
            generator: the same in every process.
        """
        return Plan.of(send(self.draw_all(count, image.shape[2], generator).share(), image.device))

    def draw_all(self, count: int, stored_px: int, generator: torch.Generator) -> Plan:
        """Like `draw`, but for the whole batch and on the CPU; `stored_px` is the side of the images."""
        size = num_jitter_draws(self._strengths)
        chances = torch.rand(BOX_DRAWS + 2 * size, count, generator=generator)
        boxes = square_boxes(chances[:BOX_DRAWS], self._side, self._flip_probability)
        colored_px = self._size_px if self._crop_first else stored_px
        of_view = chances[BOX_DRAWS:].view(2, size, count).transpose(0, 1)
        jitters = zip(*jitter_from(of_view, self._strengths, colored_px), strict=True)
        first, second = (Jitter(*jitter) for jitter in jitters)
        return Plan(boxes, (first, second))

    def pair(self, image: Float[Tensor, "N 3 H W"], plan: Plan) -> Pair:
        """Both views, rendered together, whose pixels are clustered and assigned."""
        return Pair(*self._render(image, *plan.both()), plan.boxes)

    def trained(self, pair: Pair, image: Float[Tensor, "N 3 H W"], plan: Plan) -> Pair:
        """The views that the network learns from: `pair` of this plan, but for what `color_views` says."""
        if self._colors_first:
            return pair
        unchanged = plan._replace(jitters=(no_jitter(len(image), image.device), plan.jitters[1]))
        first = self.render(image, unchanged, 0).image
        return pair._replace(images=torch.cat([first, pair.images[len(image) :]]))

    def render(self, image: Float[Tensor, "N 3 H W"], plan: Plan, number: int) -> View:
        """View `number` of the images; RGB in [0, 1]."""
        box = plan.boxes if number == 0 else whole(len(image), image.device)
        return View(*self._render(image, box, plan.jitters[number]), None if number == 0 else plan.boxes)

    def _render(
        self, image: Float[Tensor, "N 3 H W"], boxes: Boxes, jitter: Jitter
    ) -> tuple[Float[Tensor, "VN 3 S S"], Float[Tensor, "VN 3 h w"] | None]:
        """One or two views of each image, and their unaugmented colors."""
        size = (self._size_px, self._size_px)
        if self._crop_first:
            view = apply_colour(resample(image, boxes, size, jitter.blur_sigma_px), jitter)
        else:
            stored, uncut = (image.shape[2], image.shape[3]), whole(len(boxes.top), image.device)
            colored = apply_colour(resample(image, uncut, stored, jitter.blur_sigma_px), jitter)
            view = resample(colored, boxes, size)
        return view, None if self._clean_px is None else resample(
            image, boxes, (self._clean_px, self._clean_px)
        )


BOX_DRAWS = 4  # random numbers of a box


def square_boxes(chances: Float[Tensor, "4 N"], side: tuple[float, float], flip_probability: float) -> Boxes:
    """Square boxes, their position and mirroring from uniform random numbers.

    Args:
        chances: `BOX_DRAWS` random numbers in [0, 1) for each image.
        side: range in image sides.
        flip_probability: of mirroring.
    """
    length = side[0] + (side[1] - side[0]) * chances[0]
    top, left = (1 - length) * chances[1:3]
    return Boxes(top, left, length, length, (chances[3] < flip_probability).float())


def cut_features(feature: Float[Tensor, "N D H W"], boxes: Boxes | None) -> Float[Tensor, "N D H W"]:
    """Crop `boxes` from a feature map at its own size: the geometric transform of the second view."""
    return feature if boxes is None else resample(feature, boxes, (feature.shape[2], feature.shape[3]))


class Features(NamedTuple):
    """Features of one view."""

    pixels: Pixels  # in crop coordinates, float32
    whole_map: Float[Tensor, "N D H W"]  # F' of the whole network input


class Siamese:
    """Renders views of images and computes their features.

    Args:
        settings: `train` of params.yaml.
        size_px: side of the network input.
        precision: precision of the forward passes.
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
            color_views=settings.color_views,
            clean_px=size_px // context.stride if sees_clean else None,
        )
        self.feature_px = size_px // settings.feature_stride

    def features(self, network: Segmenter, view: View) -> Features:
        """Pixel features of one view: unit length, or unnormalized for the euclidean metric."""
        with autocast(view.image.device, self._precision):
            whole_map = network(view.image, view.colors)
        return self._cut(whole_map, view.boxes)

    def features_of_both(self, network: Segmenter, pair: Pair) -> tuple[Features, Features]:
        """Like `features`, for both views; each has batch-norm statistics of its own."""
        with autocast(pair.images.device, self._precision):
            first, second = network(pair.images, pair.colors, 2).chunk(2)
        return self._cut(first, None), self._cut(second, pair.boxes)

    def _cut(self, whole_map: Float[Tensor, "N D H W"], boxes: Boxes | None) -> Features:
        cut = cut_features(whole_map.float(), boxes)
        return Features(Pixels.of_map(cut, is_unit=self._is_unit), whole_map)

    def plain_pixels(self, network: Segmenter, image: Float[Tensor, "N 3 H W"]) -> Pixels:
        """Pixel features of whole, unaugmented images."""
        box = whole(len(image), image.device)
        view = View(resample(image, box, (self._size_px, self._size_px)), None, None)
        return self.features(network, view).pixels
