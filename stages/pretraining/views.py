"""Random augmented views for self-supervised pretraining."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.core import distributed
from stages.core.device import send
from stages.imaging.batches import normalise
from stages.imaging.photometric import Jitter, apply_colour, jitter_from, num_jitter_draws
from stages.imaging.resample import Boxes, resample
from stages.settings.section import Photometric

BOX_DRAWS = 5  # random numbers of a box


def random_resized_boxes(
    count: int, area: tuple[float, float], aspect: float, generator: torch.Generator
) -> Boxes:
    """Boxes with a random share of the image's area and a random aspect, mirrored half of the time.

    A box that does not fit is clipped to the image side; rejection sampling would have no fixed cost.

    Args:
        count: N.
        area: range of the share.
        aspect: smallest ratio of width to height; the largest is its inverse.
        generator: the only source of randomness.
    """
    return resized_boxes(torch.rand(BOX_DRAWS, count, generator=generator), area, aspect)


def resized_boxes(chances: Float[Tensor, "5 ..."], area: tuple[float, float], aspect: float) -> Boxes:
    """`random_resized_boxes` from uniform random numbers, for any number of images."""
    (low, high), widest = area, -math.log(aspect)
    half_log = (2 * widest * chances[1] - widest) / 2
    sides = ((low + (high - low) * chances[0]).sqrt() * torch.stack([-half_log, half_log]).exp()).clamp(max=1)
    (top, left), (height, width) = (1 - sides) * chances[2:4], sides
    return Boxes(top, left, height, width, (chances[4] < 0.5).float())


def _uniform(count: int, generator: torch.Generator) -> Callable[[float, float], Tensor]:
    return lambda low, high: low + (high - low) * torch.rand(count, generator=generator)


def overlapping_boxes(
    first: Boxes, area: tuple[float, float], aspect: float, overlap: float, generator: torch.Generator
) -> Boxes:
    """Second boxes that overlap the first ones, else as `random_resized_boxes`.

    SlotCon draws boxes until they overlap in 1 % of their area. Here the place is drawn at once from those
    that overlap, so that the cost is fixed.

    Args:
        first: boxes of the first view.
        area: range of the share of the image's area.
        aspect: smallest ratio of width to height; the largest is its inverse.
        overlap: smallest overlap of each side, relative to the smaller of both views' sides.
        generator: the only source of randomness.
    """
    count = len(first.top)
    second = random_resized_boxes(count, area, aspect, generator)
    uniform = _uniform(count, generator)

    def start(other: Tensor, other_length: Tensor, length: Tensor) -> Tensor:
        shared = overlap * torch.minimum(other_length, length)
        low = (other - length + shared).clamp_min(0)
        high = torch.minimum(other + other_length - shared, 1 - length)
        return low + (high - low) * uniform(0, 1)

    top = start(first.top, first.height, second.height)
    left = start(first.left, first.width, second.width)
    return second._replace(top=top, left=left)


def intersections(first: Boxes, second: Boxes) -> tuple[Boxes, Boxes]:
    """Where the intersection of both views lies in each of them; cutting it out also undoes their flips.

    Args:
        first: boxes of the first view, in the image; the view is mirrored where `flip` is 1.
        second: boxes of the second view, which overlap the first.

    Returns:
        Boxes in fractions of the sides of the first and of the second view.
    """
    top, bottom = _common(first.top, first.height, second.top, second.height)
    left, right = _common(first.left, first.width, second.left, second.width)

    def inside(view: Boxes) -> Boxes:
        height, width = (bottom - top) / view.height, (right - left) / view.width
        ahead = (left - view.left) / view.width
        ahead = torch.where(view.flip > 0, 1 - ahead - width, ahead)
        return Boxes((top - view.top) / view.height, ahead, height, width, view.flip)

    return inside(first), inside(second)


def _common(start: Tensor, length: Tensor, other: Tensor, other_length: Tensor) -> tuple[Tensor, Tensor]:
    return torch.maximum(start, other), torch.minimum(start + length, other + other_length)


class Look(NamedTuple):
    """What differs between the colors of the two views of SlotCon."""

    blur_probability: float
    solarize_probability: float


class Views:
    """The random views of one step: drawn for the whole batch, rendered for this process's share.

    Args:
        strengths: strengths of color jitter and blur.
        aspect: smallest aspect of a crop, see `random_resized_boxes`.
        generator: the only source of randomness.
    """

    def __init__(self, strengths: Photometric, aspect: float, generator: torch.Generator) -> None:
        self._strengths, self._aspect, self._generator = strengths, aspect, generator

    def draw(
        self, image: Float[Tensor, "n 3 H W"], area: tuple[float, float], size_px: int
    ) -> Float[Tensor, "n 3 S S"]:
        """One augmented, normalized view of each image (MoCo v2's augmentations)."""
        return self.draw_several(image, area, size_px, 1)[0]

    def draw_several(
        self, image: Float[Tensor, "n 3 H W"], area: tuple[float, float], size_px: int, count: int
    ) -> Float[Tensor, "V n 3 S S"]:
        """`count` views of each image as `draw` gives them one after the other, with few calls.

        Blur and color commute except for clipping, so the blur is part of the resampling.
        """
        world, size = distributed.world_size(), BOX_DRAWS + num_jitter_draws(self._strengths)
        drawn = torch.rand(count, size, len(image) * world, generator=self._generator)
        chances = drawn.tensor_split(world, dim=2)[distributed.rank()].transpose(0, 1)
        jitter = jitter_from(chances[BOX_DRAWS:], self._strengths, size_px)
        boxes = resized_boxes(chances[:BOX_DRAWS], area, self._aspect)
        numbers = send(torch.stack([*boxes, *jitter]).flatten(1), image.device).unbind()
        boxes, jitter = Boxes(*numbers[: len(boxes)]), Jitter(*numbers[len(boxes) :])
        crops = resample(image, boxes, (size_px, size_px), jitter.blur_sigma_px)
        return normalise(apply_colour(crops, jitter)).unflatten(0, (count, -1))

    def draw_overlapping(
        self,
        image: Float[Tensor, "n 3 H W"],
        area: tuple[float, float],
        size_px: int,
        overlap: float,
        looks: Sequence[Look],
    ) -> tuple[list[Float[Tensor, "n 3 S S"]], list[Boxes]]:
        """Two views of each image that overlap, and their intersection in each (SlotCon's augmentations).

        Args:
            image: RGB in [0, 1].
            area: range of the share of the image's area.
            size_px: S.
            overlap: see `overlapping_boxes`.
            looks: of the first and of the second view.

        Returns:
            Two augmented, normalized views, and two sets of boxes; see `intersections`.
        """
        count = self._count(image)
        first = random_resized_boxes(count, area, self._aspect, self._generator)
        drawn = (first, overlapping_boxes(first, area, self._aspect, overlap, self._generator))
        views = [self._look(image, boxes, size_px, look) for boxes, look in zip(drawn, looks, strict=True)]
        common = [Boxes(*map(distributed.share, boxes)).to(image.device) for boxes in intersections(*drawn)]
        return views, common

    def _look(
        self, image: Float[Tensor, "n 3 H W"], drawn: Boxes, size_px: int, look: Look
    ) -> Float[Tensor, "n 3 S S"]:
        strengths = self._strengths.model_copy(update={"blur_probability": look.blur_probability})
        crop, jitter = self._crop(image, drawn, size_px, strengths)
        chosen = torch.rand(self._count(image), generator=self._generator) < look.solarize_probability
        coloured = apply_colour(crop, jitter)
        inverted = distributed.share(chosen).to(image.device)[:, None, None, None] & (coloured >= 0.5)
        return normalise(torch.where(inverted, 1 - coloured, coloured))

    def _crop(
        self, image: Float[Tensor, "n 3 H W"], drawn: Boxes, size_px: int, strengths: Photometric
    ) -> tuple[Float[Tensor, "n 3 S S"], Jitter]:
        """This process's share of the crops, blurred, and the changes of color that are left to make."""
        boxes = Boxes(*map(distributed.share, drawn))
        chances = torch.rand(num_jitter_draws(strengths), self._count(image), generator=self._generator)
        jitter = jitter_from(distributed.share(chances.T).T, strengths, size_px).to(image.device)
        return resample(image, boxes.to(image.device), (size_px, size_px), jitter.blur_sigma_px), jitter

    def _count(self, image: Tensor) -> int:
        return len(image) * distributed.world_size()

    def permutation(self, image: Float[Tensor, "n 3 H W"]) -> Int[Tensor, " N"]:
        """A random order of the whole batch."""
        return send(torch.randperm(self._count(image), generator=self._generator), image.device)
