"""CIE L*a*b*, in which equal distances look about equally different."""

import torch
from jaxtyping import Float
from torch import Tensor

# Linear sRGB to XYZ under D65 (IEC 61966-2-1), each row divided by the white point.
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
LINEAR_BELOW = (6 / 29) ** 3  # of the cube root (CIE 15)


def to_lab(image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    """sRGB in [0, 1] to L*a*b* over 100: lightness in [0, 1], a and b within about +-1."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    matrix = image.new_tensor(RGB_TO_XYZ) / image.new_tensor(WHITE)[:, None]
    x, y, z = torch.einsum("dc,nchw->dnhw", matrix, linear)
    x, y, z = (
        torch.where(
            value > LINEAR_BELOW,
            value.clamp_min(LINEAR_BELOW) ** (1 / 3),
            value / (3 * (6 / 29) ** 2) + 4 / 29,
        )
        for value in (x, y, z)
    )
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1) / 100
