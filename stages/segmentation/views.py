"""The two views of the siamese scheme, and the views that guide (3, 4.1)."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.imaging.photometric import apply_colour, draw_jitter
from stages.imaging.pyramid import crop_boxes
from stages.imaging.resample import Boxes, resample, whole
from stages.runtime.schema import Photometric


class Pair(NamedTuple):
    """Two views of the same images.

    The first is cut before the network sees it, the second's feature map is cut by `boxes` after: the
    same pixels on two ways (equivariance), in colours of their own (invariance).
    """

    cut: Float[Tensor, "N 3 S S"]
    uncut: Float[Tensor, "N 3 S S"]
    boxes: Boxes


def draw_boxes(
    count: int, side: tuple[float, float], flip_probability: float, generator: torch.Generator
) -> Boxes:
    """Random square boxes, at any place, mirrored or not; `side` is a range in image sides."""
    length = side[0] + (side[1] - side[0]) * torch.rand(count, generator=generator)
    top, left = ((1 - length) * torch.rand(count, generator=generator) for _ in range(2))
    flip = (torch.rand(count, generator=generator) < flip_probability).float()
    return Boxes(top, left, length, length, flip)


def colour_view(
    image: Float[Tensor, "N 3 H W"],
    boxes: Boxes,
    size_px: int,
    strengths: Photometric,
    generator: torch.Generator,
) -> Float[Tensor, "N 3 S S"]:
    """`boxes` of the images, in random colours."""
    jitter = draw_jitter(len(image), strengths, size_px, generator).to(image.device)
    return apply_colour(resample(image, boxes, (size_px, size_px), jitter.blur_sigma_px), jitter)


def draw_pair(
    image: Float[Tensor, "N 3 H W"],
    *,
    side: tuple[float, float],
    flip_probability: float,
    size_px: int,
    strengths: Photometric,
    generator: torch.Generator,
) -> Pair:
    """One random pair of views for each image; RGB in [0, 1]."""
    boxes = draw_boxes(len(image), side, flip_probability, generator).to(image.device)
    cut = colour_view(image, boxes, size_px, strengths, generator)
    uncut = colour_view(image, whole(len(image)).to(image.device), size_px, strengths, generator)
    return Pair(cut, uncut, boxes)


def draw_guides(
    kept: Int[Tensor, "N V"], generator: torch.Generator
) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """One random kept view for each image that has any.

    Args:
        kept: the pseudo-label of a view that is kept, -1 of one that is not.
        generator: the only source of randomness.

    Returns:
        The rows of those images, and the number of the view of each.
    """
    chances = torch.rand(kept.shape, generator=generator).masked_fill(kept < 0, -1.0)
    best, view = chances.max(dim=1)
    rows = torch.nonzero(best >= 0).flatten()
    return rows, view[rows]


def guide_view(
    image: Float[Tensor, "N 3 H W"],
    view: Int[Tensor, " N"],
    *,
    crop_ratio: float,
    size_px: int,
    strengths: Photometric,
    generator: torch.Generator,
) -> Float[Tensor, "N 3 S S"]:
    """The pyramid view `view` of each image, an image of its own (4.2.1), in random colours."""
    return colour_view(image, crop_boxes(view, crop_ratio).to(image.device), size_px, strengths, generator)
