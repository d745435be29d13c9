"""Crop, flip, resize and blur as two matrix products, with separate parameters for each image.

Each of these maps is linear and separable: rows first, columns second. So a chain of them for a batch
is one pair of batched matrices, `rows @ image @ columns^T`, at the speed of a matrix product on every
device, differentiable, and the same for images and feature maps.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stages.core.device import send

MANY_CHANNELS = 16  # threshold for the channels-last path, which is slow for the 3 channels of an image


class Boxes(NamedTuple):
    """One box per image, in fractions of the image sides; `flip` mirrors left to right."""

    top: Float[Tensor, " N"]
    left: Float[Tensor, " N"]
    height: Float[Tensor, " N"]
    width: Float[Tensor, " N"]
    flip: Float[Tensor, " N"]  # 1: mirrored, 0: not

    @classmethod
    def of(cls, sides: Float[Tensor, "N 4"]) -> "Boxes":
        """From rows of (top, left, height, width); not mirrored."""
        top, left, height, width = sides.unbind(1)
        return cls(top, left, height, width, torch.zeros(len(sides)))

    def to(self, device: torch.device) -> "Boxes":
        """Move the boxes to another device in one copy."""
        return Boxes(*send(torch.stack(self), device).unbind())

    def select(self, rows: Tensor) -> "Boxes":
        """The boxes of some of the images."""
        return Boxes(*(part[rows] for part in self))


def whole(count: int, device: torch.device | None = None) -> Boxes:
    """Boxes that cover the whole image, for `count` images."""
    zeros, ones = torch.zeros(count, device=device), torch.ones(count, device=device)
    return Boxes(zeros, zeros, ones, ones, zeros)


def resample(
    image: Float[Tensor, "N C H W"],
    boxes: Boxes,
    size: tuple[int, int],
    blur_sigma_px: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, "N C h w"]:
    """Crop `boxes` from the images, resize them to `size`, and blur.

    Bilinear with half-pixel centers; antialiased when downsampling.

    Args:
        image: any feature map.
        boxes: one box for each image.
        size: (rows, columns) of the result.
        blur_sigma_px: standard deviation of a Gaussian in pixels of the result; 0 means no blur.
    """
    rows = interpolation_matrix(boxes.top, boxes.height, image.shape[2], size[0])
    columns = interpolation_matrix(boxes.left, boxes.width, image.shape[3], size[1])
    columns = torch.where(boxes.flip[:, None, None] > 0, columns.flip(1), columns)
    if blur_sigma_px is not None:
        rows = gaussian_matrix(blur_sigma_px, size[0]) @ rows
        columns = gaussian_matrix(blur_sigma_px, size[1]) @ columns
    return separable(image, rows, columns)


def enlarge(feature: Float[Tensor, "N D H W"], size: tuple[int, int]) -> Float[Tensor, "N D h w"]:
    """Upsample a feature map bilinearly with half-pixel centers; two implementations, same result.

    The gradient of torch's interpolation uses slow scatter operations on a GPU (if deterministic) and in
    compiled code, where it took a sixth of a training step. Matrix products are faster in these cases.
    """
    if feature.device.type == "cpu" and not torch.compiler.is_compiling():
        return F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
    start, length = torch.zeros(1, device=feature.device), torch.ones(1, device=feature.device)
    rows, columns = (
        interpolation_matrix(start, length, source, target).to(feature.dtype)
        for source, target in zip(feature.shape[2:], size, strict=True)
    )
    return separable(feature, rows, columns)


def shrink(feature: Float[Tensor, "N D H W"], size: tuple[int, int]) -> Float[Tensor, "N D h w"]:
    """Downsample a feature map by averaging over cells.

    On a GPU, adaptive pooling has no deterministic gradient, but pooling over equal cells has; ONNX knows
    the latter alone.
    """
    # In an exported model, sides are not known as numbers, but cells are; sides are multiples of them.
    sides = ((int(source), int(target)) for source, target in zip(feature.shape[2:], size, strict=True))
    cell, rest = zip(*(divmod(source, target) for source, target in sides), strict=True)
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if (feature.device.type == "cuda" or is_traced) and not any(rest):
        return F.avg_pool2d(feature, cell)
    return F.adaptive_avg_pool2d(feature, size)


def separable(
    image: Float[Tensor, "N C H W"], rows: Float[Tensor, "#N h H"], columns: Float[Tensor, "#N w W"]
) -> Float[Tensor, "N C h w"]:
    """`rows @ image @ columns^T` for every image and channel; matrices per image or shared.

    Feature maps in channels-last format keep it.
    """
    if image.shape[1] >= MANY_CHANNELS and image.is_contiguous(memory_format=torch.channels_last):
        across = torch.matmul(columns[:, None], image.to(rows.dtype).permute(0, 2, 3, 1))
        pixels = torch.matmul(rows, across.flatten(2)).unflatten(2, across.shape[2:])
        return pixels.permute(0, 3, 1, 2)
    across = torch.matmul(image.to(rows.dtype), columns.transpose(1, 2)[:, None])
    return torch.matmul(rows[:, None], across)


def interpolation_matrix(
    start: Float[Tensor, " N"], length: Float[Tensor, " N"], source: int, target: int
) -> Float[Tensor, "N T S"]:
    """Matrix of bilinear weights from `source` cells to `target` cells inside [start, start + length].

    Each row sums to 1; cells beyond the border have no weight.
    """
    cells = torch.arange(target, device=start.device, dtype=start.dtype) + 0.5
    scale = length * source / target
    centre = (start * source)[:, None] + cells[None] * scale[:, None] - 0.5
    positions = torch.arange(source, device=start.device, dtype=start.dtype)
    reach = scale.clamp_min(1.0)[:, None, None]
    # Beyond the border, use the nearest cell.
    centre = centre.clamp(0, source - 1)
    weights = (1 - (positions[None, None] - centre[:, :, None]).abs() / reach).clamp_min(0)
    return weights / weights.sum(2, keepdim=True)


def gaussian_matrix(sigma: Float[Tensor, " N"], size: int) -> Float[Tensor, "N S S"]:
    """Gaussian blur along one side; rows sum to 1, so the border is not darkened."""
    positions = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    squared = (positions[:, None] - positions[None]) ** 2
    # Avoid division by 0; at a sigma of 0.01 px, all other cells have weight 0.
    weights = torch.exp(-squared[None] / (2 * sigma.clamp_min(1e-2)[:, None, None] ** 2))
    return weights / weights.sum(2, keepdim=True)
