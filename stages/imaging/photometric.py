"""Color jitter, grayscale and blur for a batch, with separate parameters for each image.

Brightness, saturation, hue and grayscale are linear maps of RGB, and contrast is linear with an offset;
together they form a single 3x4 matrix per image. The usual image libraries clip to [0, 1] after every step
and shift hue in HSV; here, hue is a rotation about the gray axis, and the result is clipped once.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stages.core.transfer import constant
from stages.settings.section import Photometric

# Luma weights of ITU-R BT.601, as in the usual image libraries.
LUMA = (0.299, 0.587, 0.114)
CROSS = ((0, -1, 1), (1, 0, -1), (-1, 1, 0))  # of Rodrigues' formula, times sqrt(3)


class Jitter(NamedTuple):
    """Drawn parameters, one row per image. A factor of 1 and a turn of 0 are the identity."""

    brightness: Float[Tensor, " N"]
    contrast: Float[Tensor, " N"]
    saturation: Float[Tensor, " N"]  # 0 is grayscale
    hue_turns: Float[Tensor, " N"]  # fraction of a full turn
    blur_sigma_px: Float[Tensor, " N"]


def num_jitter_draws(strengths: Photometric) -> int:
    """Number of random numbers for each image that `jitter_from` takes; of twelve it leaves out the first."""
    return 8 if strengths.jitter_together else 12


def draw_jitter(count: int, strengths: Photometric, image_px: int, generator: torch.Generator) -> Jitter:
    """Draw the parameters of `count` images (A.1); the generator is the only source of randomness."""
    chances = torch.rand(num_jitter_draws(strengths), count, generator=generator)
    return jitter_from(chances, strengths, image_px)


def jitter_from(chances: Float[Tensor, "..."], strengths: Photometric, image_px: int) -> Jitter:
    """The parameters of any number of images from uniform random numbers (A.1).

    Args:
        chances: [R, N] or [R, V, N], R = `num_jitter_draws` random numbers in [0, 1) for each image.
        strengths: factors and probabilities.
        image_px: side of the result; blur sigmas are given for `blur_reference_px` and are scaled to this.
            With a reference of 0 they are pixels of the result.
    """
    together, values = (
        (chances[:1], chances[1:5]) if strengths.jitter_together else (chances[1:8:2], chances[2:9:2])
    )
    gray, is_blurred, sigma = chances[-3:]
    factors = [
        (max(0.0, 1 - one), 1 + one)
        for one in (strengths.brightness, strengths.contrast, strengths.saturation)
    ]
    ranges = (*factors, (-strengths.hue, strengths.hue))
    low, width, neutral = (
        constant(one, chances.device, chances.dtype).view(-1, *[1] * (chances.ndim - 1))
        for one in (tuple(a for a, _ in ranges), tuple(b - a for a, b in ranges), (1.0, 1.0, 1.0, 0.0))
    )
    changed = torch.where(together < strengths.jitter_probability, low + width * values, neutral)
    brightness, contrast, saturation, hue = changed
    saturation = saturation * (gray >= strengths.gray_probability)
    scale = image_px / strengths.blur_reference_px if strengths.blur_reference_px else 1.0
    least, most = (one * scale for one in strengths.blur_sigma_px)
    blur = (least + (most - least) * sigma) * (is_blurred < strengths.blur_probability)
    return Jitter(brightness, contrast, saturation, hue, blur)


def no_jitter(count: int, device: torch.device) -> Jitter:
    """The identity for `count` images."""
    one, zero = torch.ones(count, device=device), torch.zeros(count, device=device)
    return Jitter(one, one, one, zero, zero)


def apply_colour(image: Float[Tensor, "N 3 H W"], jitter: Jitter) -> Float[Tensor, "N 3 H W"]:
    """Apply contrast about the mean gray, saturation, hue and brightness; clip to [0, 1]."""
    luma = constant(LUMA, image.device, image.dtype)
    scale = jitter.brightness * jitter.contrast
    mean_gray = image.mean((2, 3)) @ luma
    offset = ((jitter.brightness - scale) * mean_gray).to(image.dtype)
    colours = _colours(jitter, scale).to(image.dtype)
    mixed = torch.baddbmm(offset[:, None, None], colours, image.flatten(2))
    return mixed.clamp_(0, 1).view_as(image)


def _colours(jitter: Jitter, scale: Float[Tensor, " N"]) -> Float[Tensor, "N 3 3"]:
    """The matrix of saturation and hue, times `scale`.

    Hue is a rotation about the gray axis (Rodrigues' formula), saturation a mix with gray before it. A
    rotation leaves gray as it is, so the product of both is a sum of four constant matrices.
    """
    angle = 2 * math.pi * jitter.hue_turns
    colour = scale * jitter.saturation
    weights = torch.stack([scale - colour, colour, colour * angle.cos(), colour * angle.sin()], dim=1)
    parts = constant(_PARTS, weights.device, weights.dtype)
    return (weights @ parts).view(-1, 3, 3)


# Rows: gray, the projection on the gray axis, what is orthogonal to it, and the cross product with it.
_PARTS = (
    LUMA * 3,
    (1 / 3,) * 9,
    tuple(float(place % 4 == 0) - 1 / 3 for place in range(9)),
    tuple(one / math.sqrt(3) for row in CROSS for one in row),
)
