"""Random augmented views for instance-level pretraining."""

import math

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

    def permutation(self, image: Float[Tensor, "n 3 H W"]) -> Int[Tensor, " N"]:
        """A random order of the whole batch."""
        count = len(image) * distributed.world_size()
        return send(torch.randperm(count, generator=self._generator), image.device)
