"""Random augmented views for self-supervised pretraining."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.core import distributed
from stages.imaging.batches import normalise
from stages.imaging.photometric import Jitter, apply_colour, draw_jitter, jitter_from, num_jitter_draws
from stages.imaging.resample import Boxes, resample, unstacked
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

    def start(other: Tensor, other_length: Tensor, length: Tensor) -> Tensor:
        shared = overlap * torch.minimum(other_length, length)
        low = (other - length + shared).clamp_min(0)
        high = torch.minimum(other + other_length - shared, 1 - length)
        return low + (high - low) * torch.rand(count, generator=generator)

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
    """Draws the random views of one step on the host: for the whole batch, of which it returns this share.

    Args:
        strengths: strengths of color jitter and blur.
        aspect: smallest aspect of a crop, see `random_resized_boxes`.
        generator: the only source of randomness.
    """

    def __init__(self, strengths: Photometric, aspect: float, generator: torch.Generator) -> None:
        self._strengths, self._aspect, self._generator = strengths, aspect, generator

    def draw(
        self, num_images: int, area: tuple[float, float], size_px: int, count: int
    ) -> Float[Tensor, "R V n"]:
        """The numbers of `count` augmented views of each image (MoCo v2's augmentations), for `render`.

        Args:
            num_images: n, in this process's share.
            area: range of the share of the image's area.
            size_px: side of a view.
            count: V.
        """
        size = BOX_DRAWS + num_jitter_draws(self._strengths)
        drawn = torch.rand(count, size, num_images * distributed.world_size(), generator=self._generator)
        chances = distributed.share(drawn, dim=2).transpose(0, 1)
        jitter = jitter_from(chances[BOX_DRAWS:], self._strengths, size_px)
        return torch.stack([*resized_boxes(chances[:BOX_DRAWS], area, self._aspect), *jitter])

    def draw_overlapping(
        self,
        num_images: int,
        area: tuple[float, float],
        size_px: int,
        overlap: float,
        looks: Sequence[Look],
    ) -> Float[Tensor, "R n"]:
        """The numbers of two overlapping views of each image (SlotCon's), for `render_overlapping`.

        Args:
            num_images: n, in this process's share.
            area: range of the share of the image's area.
            size_px: side of a view.
            overlap: see `overlapping_boxes`.
            looks: of the first and of the second view.
        """
        count = num_images * distributed.world_size()
        first = random_resized_boxes(count, area, self._aspect, self._generator)
        boxes = first, overlapping_boxes(first, area, self._aspect, overlap, self._generator)
        colours = [self._draw_look(count, size_px, look) for look in looks]
        views = [(*box, *colour) for box, colour in zip(boxes, colours, strict=True)]
        rows = [*views[0], *views[1], *(row for common in intersections(*boxes) for row in common)]
        return torch.stack([distributed.share(row) for row in rows])

    def _draw_look(self, count: int, size_px: int, look: Look) -> tuple[Tensor, ...]:
        """Changes of color, then 1 for images whose bright colors are inverted, else 0."""
        strengths = self._strengths.model_copy(update={"blur_probability": look.blur_probability})
        jitter = draw_jitter(count, strengths, size_px, self._generator)
        chances = torch.rand(count, generator=self._generator)
        return (*jitter, (chances < look.solarize_probability).float())

    def permutation(self, num_images: int) -> Int[Tensor, " N"]:
        """A random order of the whole batch; each process has `num_images` of it."""
        return torch.randperm(num_images * distributed.world_size(), generator=self._generator)


def render(
    image: Float[Tensor, "n 3 H W"], numbers: Float[Tensor, "R V n"], size_px: int
) -> Float[Tensor, "V n 3 S S"]:
    """Augmented, normalized views of RGB in [0, 1]; blur and color commute except for clipping.

    So the blur is part of the resampling.
    """
    rows = iter(numbers.flatten(1).unbind())
    boxes, jitter = unstacked(Boxes, rows), unstacked(Jitter, rows)
    crops = resample(image, boxes, (size_px, size_px), jitter.blur_sigma_px)
    return normalise(apply_colour(crops, jitter)).unflatten(0, (numbers.shape[1], -1))


def render_overlapping(
    image: Float[Tensor, "n 3 H W"], numbers: Float[Tensor, "R n"], size_px: int
) -> tuple[list[Float[Tensor, "n 3 S S"]], list[Boxes]]:
    """Two augmented, normalized views of RGB in [0, 1], and their intersection in each (`intersections`)."""
    rows, views = iter(numbers.unbind()), []
    for _ in range(2):
        boxes, jitter, is_inverted = unstacked(Boxes, rows), unstacked(Jitter, rows), next(rows) > 0
        crop = resample(image, boxes, (size_px, size_px), jitter.blur_sigma_px)
        coloured = apply_colour(crop, jitter)
        inverted = is_inverted[:, None, None, None] & (coloured >= 0.5)
        views.append(normalise(torch.where(inverted, 1 - coloured, coloured)))
    return views, [unstacked(Boxes, rows), unstacked(Boxes, rows)]
