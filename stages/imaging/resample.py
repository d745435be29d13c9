"""Crop, flip, resize and blur as two matrix products, with separate parameters for each image.

Each of these maps is linear and separable: rows first, columns second. So a chain of them for a batch
is one pair of batched matrices, `rows @ image @ columns^T`, at the speed of a matrix product on every
device, differentiable, and the same for images and feature maps.
"""

import functools
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stages.core.transfer import send

MANY_CHANNELS = 16  # threshold for the channels-last path, which is slow for the 3 channels of an image
Rows = TypeVar("Rows", bound=NamedTuple)


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

    def select(self, rows: Tensor | slice) -> "Boxes":
        """The boxes of some of the images."""
        return Boxes(*(part[rows] for part in self))


def unstacked(kind: type[Rows], rows: Iterator[Tensor]) -> Rows:
    """The next rows of a stack, which went to the device as one tensor, as `Boxes` or a similar tuple."""
    return kind._make(islice(rows, len(kind._fields)))


def whole(count: int, device: torch.device | None = None) -> Boxes:
    """Boxes that cover the whole image, for `count` images."""
    zeros, ones = torch.zeros(count, device=device), torch.ones(count, device=device)
    return Boxes(zeros, zeros, ones, ones, zeros)


def resample(
    image: Float[Tensor, "N C H W"],
    boxes: Boxes,
    size: tuple[int, int],
    blur_sigma_px: Float[Tensor, " VN"] | None = None,
) -> Float[Tensor, "VN C h w"]:
    """Crop `boxes` from the images, resize them to `size`, and blur.

    Bilinear with half-pixel centers; antialiased when downsampling.

    Args:
        image: any feature map.
        boxes: one box for each image; or several, first one for each image, then the next for each. The
            result has their order. Several are possible for fewer than `MANY_CHANNELS` channels.
        size: (rows, columns) of the result.
        blur_sigma_px: standard deviation of a Gaussian for each box, in pixels of the result; 0: no blur.
    """
    top, left, height, width, flip = boxes
    left, width = left + flip * width, width * (1 - 2 * flip)  # a mirrored box runs from right to left
    views = len(top) // len(image) if len(image) else 1
    vertical = [_by_image(part, views) for part in (top, height)]
    blur = None if blur_sigma_px is None else _by_image(blur_sigma_px, views)
    if image.shape[2] == image.shape[3] and size[0] == size[1]:  # one call for both sides
        start, length = (torch.cat(pair) for pair in zip(vertical, (left, width), strict=True))
        both = None if blur is None or blur_sigma_px is None else torch.cat([blur, blur_sigma_px])
        rows, columns = _weights(start, length, image.shape[2], size[0], both).chunk(2)
    else:
        top, height = vertical
        rows = _weights(top, height, image.shape[2], size[0], blur)
        columns = _weights(left, width, image.shape[3], size[1], blur_sigma_px)
    if image.shape[1] >= MANY_CHANNELS:
        return separable(image, rows, columns)
    return _cut(image.to(rows.dtype), rows, columns)


def _by_image(values: Float[Tensor, " VN"], views: int) -> Float[Tensor, " NV"]:
    """From all images of each view to all views of each image."""
    return values if views == 1 else values.view(views, -1).T.flatten()


def _weights(
    start: Float[Tensor, " N"],
    length: Float[Tensor, " N"],
    source: int,
    target: int,
    blur_sigma_px: Float[Tensor, " N"] | None,
) -> Float[Tensor, "N T S"]:
    """Matrices of one side: interpolation, then blur."""
    weights = interpolation_matrix(start, length, source, target)
    return weights if blur_sigma_px is None else torch.bmm(gaussian_matrix(blur_sigma_px, target), weights)


def _cut(
    image: Float[Tensor, "N C H W"], rows: Float[Tensor, "NV h H"], columns: Float[Tensor, "VN w W"]
) -> Float[Tensor, "VN C h w"]:
    """Like `separable`, for few channels and several views of each image, without a copy of the images."""
    count, channels, height, width = image.shape
    target, views = rows.shape[1], len(columns) // max(1, count)
    pixels = image.permute(0, 2, 3, 1).reshape(count, height, width * channels)
    lines = torch.bmm(rows.reshape(count, views * target, height), pixels)
    lines = lines.view(count, views, target, width, channels).permute(1, 0, 4, 2, 3)
    cut = torch.bmm(lines.reshape(len(columns), channels * target, width), columns.transpose(1, 2))
    return cut.view(len(columns), channels, target, columns.shape[1])


def enlarge(feature: Float[Tensor, "N D H W"], size: tuple[int, int]) -> Float[Tensor, "N D h w"]:
    """Upsample a feature map bilinearly with half-pixel centers.

    The gradient of torch's interpolation uses slow scatter operations on a GPU (if deterministic) and in
    compiled code, where it took a sixth of a training step. In these cases it is a pair of matrix products.
    """
    if feature.device.type == "cpu" and not torch.compiler.is_compiling():
        return F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
    return _Enlarge.apply(feature, size)


class _Enlarge(torch.autograd.Function):
    """One kernel forward, matrix products backward."""

    @staticmethod
    def forward(
        ctx: Any, feature: Float[Tensor, "N D H W"], size: tuple[int, int]
    ) -> Float[Tensor, "N D h w"]:
        """As `F.interpolate`, which in deterministic mode would take many operators."""
        ctx.size = feature.shape[2:]
        return torch.ops.aten.upsample_bilinear2d(feature, size, align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "N D h w"]) -> tuple[Float[Tensor, "N D H W"], None]:
        """The transposed map."""
        rows, columns = (
            _enlarging(source, target, gradient.device, gradient.dtype).transpose(1, 2)
            for source, target in zip(ctx.size, gradient.shape[2:], strict=True)
        )
        if gradient.shape[1] >= MANY_CHANNELS:  # as cuDNN leaves them, so this copies nothing
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        return separable(gradient, rows, columns), None


@functools.cache
def _enlarging(source: int, target: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "1 T S"]:
    """The matrix of one side of `enlarge`."""
    start, length = torch.zeros(1, device=device), torch.ones(1, device=device)
    return interpolation_matrix(start, length, source, target).to(dtype)


def shrink(feature: Float[Tensor, "N D H W"], size: tuple[int, int]) -> Float[Tensor, "N D h w"]:
    """Downsample a feature map by averaging over cells.

    On a GPU, adaptive pooling has no deterministic gradient, but pooling over equal cells has; ONNX knows
    the latter alone.
    """
    # In an exported model, sides are not known as numbers, but cells are; sides are multiples of them.
    sides = ((int(source), int(target)) for source, target in zip(feature.shape[2:], size, strict=True))
    cell, rest = zip(*(divmod(source, target) for source, target in sides), strict=True)
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if (feature.device.type != "cpu" or is_traced) and not any(rest):
        return F.avg_pool2d(feature, cell)
    return F.adaptive_avg_pool2d(feature, size)


def separable(
    image: Float[Tensor, "N C H W"], rows: Float[Tensor, "#N h H"], columns: Float[Tensor, "#N w W"]
) -> Float[Tensor, "N C h w"]:
    """`rows @ image @ columns^T` for every image and channel; matrices per image or shared.

    Feature maps in channels-last format keep it.
    """
    if image.shape[1] >= MANY_CHANNELS and image.is_contiguous(memory_format=torch.channels_last):
        count, channels, height, width = image.shape
        pixels = image.to(rows.dtype).permute(0, 2, 3, 1).reshape(count * height, width, channels)
        of_line = (
            columns.expand(len(pixels), -1, -1) if len(columns) == 1 else columns.repeat_interleave(height, 0)
        )
        across = torch.bmm(of_line, pixels).view(count, height, columns.shape[1] * channels)
        lines = torch.bmm(rows.expand(count, -1, -1), across)
        return lines.view(count, rows.shape[1], columns.shape[1], channels).permute(0, 3, 1, 2)
    across = torch.matmul(image.to(rows.dtype), columns.transpose(1, 2)[:, None])
    return torch.matmul(rows[:, None], across)


def interpolation_matrix(
    start: Float[Tensor, " N"], length: Float[Tensor, " N"], source: int, target: int
) -> Float[Tensor, "N T S"]:
    """Matrix of bilinear weights from `source` cells to `target` cells inside [start, start + length].

    A negative length runs backward and mirrors.

    Each row sums to 1; cells beyond the border have no weight.
    """
    scale = length * (source / target)
    reach = scale.abs().clamp_min(1.0)[:, None, None]
    centre = torch.addcmul(
        (start * source - 0.5)[:, None], scale[:, None], _places(target, start.device, start.dtype) + 0.5
    )
    # Beyond the border, use the nearest cell.
    centre = centre.clamp(0, source - 1)[:, :, None]
    weights = (reach - (_places(source, start.device, start.dtype) - centre).abs()).clamp_min(0)
    return weights / weights.sum(2, keepdim=True)


def gaussian_matrix(sigma: Float[Tensor, " N"], size: int) -> Float[Tensor, "N S S"]:
    """Gaussian blur along one side; rows sum to 1, so the border is not darkened."""
    places = _places(size, sigma.device, sigma.dtype)
    squared = (places[:, None] - places) ** 2
    # Avoid division by 0; at a sigma of 0.01 px, all other cells have weight 0.
    return torch.softmax(squared * (-0.5 * sigma.clamp_min(1e-2) ** -2)[:, None, None], dim=2)


def _places(count: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, " S"]:
    return torch.arange(count, device=device, dtype=dtype)
