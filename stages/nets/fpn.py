"""The feature pyramid decoder (Lin et al., 2017) in the lean form that PiCIE and the paper use (5.1)."""

from jaxtyping import Float
from torch import Tensor, nn

from stages.imaging.resample import enlarge
from stages.nets.trunk import FeatureMaps


class FPN(nn.Module):
    """A 1x1 convolution for each feature map; from the deepest up, upsampled and added.

    The maps of a ViT are of one size, so they are only added: a pyramid resampled from them (ViTDet, Li et
    al., 2022) would give the same sum, as 1x1 convolution and bilinear resampling commute.

    Args:
        channels: of the four feature maps.
        dim: of the result; paper: 256, PiCIE with ResNet-18: 128.
    """

    def __init__(self, channels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.lateral = nn.ModuleList(nn.Conv2d(inputs, dim, 1) for inputs in channels)

    def forward(self, maps: FeatureMaps) -> Float[Tensor, "N D H W"]:
        """One map at the resolution of the first."""
        sides = [lateral(feature_map) for lateral, feature_map in zip(self.lateral, maps, strict=True)]
        merged = sides[-1]
        for side in reversed(sides[:-1]):
            merged = side + enlarge(merged, (side.shape[2], side.shape[3]))
        return merged
