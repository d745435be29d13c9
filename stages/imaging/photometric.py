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

from stages.core.device import constant, send
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

    def to(self, device: torch.device) -> "Jitter":
        """Move the parameters to another device in one copy."""
        return Jitter(*send(torch.stack(self), device).unbind())


def draw_jitter(count: int, strengths: Photometric, image_px: int, generator: torch.Generator) -> Jitter:
    """Draw the parameters of `count` images (A.1).

    Args:
        count: N.
        strengths: factors and probabilities.
        image_px: side of the result; blur sigmas are given for `blur_reference_px` and are scaled to this.
            With a reference of 0 they are pixels of the result.
        generator: the only source of randomness.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    def happens(probability: float) -> Tensor:
        return torch.rand(count, generator=generator) < probability

    together = happens(strengths.jitter_probability)
    one = torch.ones(count)

    def jittered() -> Tensor:
        return together if strengths.jitter_together else happens(strengths.jitter_probability)

    def factor(strength: float) -> Tensor:
        return torch.where(jittered(), uniform(max(0.0, 1 - strength), 1 + strength), one)

    brightness, contrast, saturation = (
        factor(strength) for strength in (strengths.brightness, strengths.contrast, strengths.saturation)
    )
    hue = torch.where(jittered(), uniform(-strengths.hue, strengths.hue), 0 * one)
    saturation = torch.where(happens(strengths.gray_probability), 0 * one, saturation)
    scale = image_px / strengths.blur_reference_px if strengths.blur_reference_px else 1.0
    low, high = (sigma * scale for sigma in strengths.blur_sigma_px)
    blur = torch.where(happens(strengths.blur_probability), uniform(low, high), 0 * one)
    return Jitter(brightness, contrast, saturation, hue, blur)


def no_jitter(count: int) -> Jitter:
    """The identity for `count` images."""
    one, zero = torch.ones(count), torch.zeros(count)
    return Jitter(one, one, one, zero, zero)


def apply_colour(image: Float[Tensor, "N 3 H W"], jitter: Jitter) -> Float[Tensor, "N 3 H W"]:
    """Apply contrast about the mean gray, saturation, hue and brightness; clip to [0, 1]."""
    luma = constant(LUMA, image.device, image.dtype)
    colours = colour_matrix(jitter).to(image.dtype)
    mean_gray = torch.einsum("c,nchw->n", luma, image) / (image.shape[2] * image.shape[3])
    gray_offset = (jitter.brightness * (1 - jitter.contrast) * mean_gray).to(image.dtype)
    mixed = torch.matmul(colours * jitter.contrast[:, None, None], image.flatten(2))
    return (mixed + gray_offset[:, None, None]).clamp(0, 1).view_as(image)


def colour_matrix(jitter: Jitter) -> Float[Tensor, "N 3 3"]:
    """Combine brightness, saturation and hue of each image in one matrix, which maps gray to gray."""
    identity = torch.eye(3, device=jitter.hue_turns.device)
    gray = constant(LUMA, identity.device, identity.dtype).expand(3, 3)
    saturation = jitter.saturation[:, None, None]
    saturate = saturation * identity + (1 - saturation) * gray
    return jitter.brightness[:, None, None] * (_hue_rotation(jitter.hue_turns) @ saturate)


def _hue_rotation(turns: Float[Tensor, " N"]) -> Float[Tensor, "N 3 3"]:
    """Rotation about the gray axis (1, 1, 1) by Rodrigues' formula."""
    angle = (2 * math.pi * turns)[:, None, None]
    identity = torch.eye(3, device=turns.device)
    axis = torch.ones(3, 3, device=turns.device) / 3
    cross = constant(CROSS, identity.device, identity.dtype) / math.sqrt(3)
    return angle.cos() * identity + angle.sin() * cross + (1 - angle.cos()) * axis
