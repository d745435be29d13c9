"""The random views that instances are told apart by."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from stages.imaging.normalise import normalise
from stages.imaging.photometric import apply_colour, draw_jitter
from stages.imaging.resample import Boxes, resample
from stages.runtime.schema import Photometric

ASPECT = (3 / 4, 4 / 3)  # of random resized crops, as in every contrastive method


def random_resized_boxes(count: int, area: tuple[float, float], generator: torch.Generator) -> Boxes:
    """Boxes with a random share of the image's area and a random aspect, mirrored half of the time.

    A box that would not fit is cut to the image's side; the usual rejection sampling has no fixed cost.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    share, log_aspect = uniform(*area), uniform(math.log(ASPECT[0]), math.log(ASPECT[1]))
    height = (share.sqrt() * (-log_aspect / 2).exp()).clamp(max=1)
    width = (share.sqrt() * (log_aspect / 2).exp()).clamp(max=1)
    top, left = (1 - height) * uniform(0, 1), (1 - width) * uniform(0, 1)
    return Boxes(top, left, height, width, (uniform(0, 1) < 0.5).float())


def random_view(
    image: Float[Tensor, "N 3 H W"],
    *,
    area: tuple[float, float],
    strengths: Photometric,
    size_px: int,
    generator: torch.Generator,
) -> Float[Tensor, "N 3 S S"]:
    """One augmented, normalised view of each image (MoCo v2's augmentations).

    Blur and colour commute but for the clipping, so the blur is part of the resampling.
    """
    boxes = random_resized_boxes(len(image), area, generator).to(image.device)
    jitter = draw_jitter(len(image), strengths, size_px, generator).to(image.device)
    crop = resample(image, boxes, (size_px, size_px), jitter.blur_sigma_px)
    return normalise(apply_colour(crop, jitter))
