"""From stored bytes to what a network takes. The constants are ImageNet's, named once."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def to_unit(image: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 3 H W"]:
    """Bytes, channels last, to RGB in [0, 1], channels first."""
    return image.permute(0, 3, 1, 2).float() / 255


def normalise(image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    """RGB in [0, 1] to zero mean and unit variance over ImageNet, channels innermost in memory."""
    mean, std = (image.new_tensor(constants).view(1, 3, 1, 1) for constants in (MEAN, STD))
    return ((image - mean) / std).contiguous(memory_format=torch.channels_last)
