"""Random augmented views for instance-level pretraining."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.core import distributed
from stages.imaging.batches import normalise
from stages.imaging.photometric import Jitter, apply_colour, draw_jitter
from stages.imaging.resample import Boxes, resample
from stages.settings.section import Photometric


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

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    share, log_aspect = uniform(*area), uniform(math.log(aspect), -math.log(aspect))
    height = (share.sqrt() * (-log_aspect / 2).exp()).clamp(max=1)
    width = (share.sqrt() * (log_aspect / 2).exp()).clamp(max=1)
    top, left = (1 - height) * uniform(0, 1), (1 - width) * uniform(0, 1)
    return Boxes(top, left, height, width, (uniform(0, 1) < 0.5).float())


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
        """One augmented, normalized view of each image (MoCo v2's augmentations).

        Blur and color commute except for clipping, so the blur is part of the resampling.
        """
        count = len(image) * distributed.world_size()
        drawn = random_resized_boxes(count, area, self._aspect, self._generator)
        boxes = Boxes(*map(distributed.share, drawn))
        jitter = Jitter(
            *map(distributed.share, draw_jitter(count, self._strengths, size_px, self._generator))
        ).to(image.device)
        crop = resample(image, boxes.to(image.device), (size_px, size_px), jitter.blur_sigma_px)
        return normalise(apply_colour(crop, jitter))

    def permutation(self, image: Float[Tensor, "n 3 H W"]) -> Int[Tensor, " N"]:
        """A random order of the whole batch."""
        count = len(image) * distributed.world_size()
        return torch.randperm(count, generator=self._generator).to(image.device)
