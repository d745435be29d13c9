"""The common interface of all backbones."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn


class FeatureMaps(NamedTuple):
    """Feature maps at four depths of a trunk, the shallowest first.

    For a ResNet, the strides are 1, 2, 4 and 8 times the stem stride; for a ViT, all equal the patch size.
    """

    layer1: Float[Tensor, "N C1 H1 W1"]
    layer2: Float[Tensor, "N C2 H2 W2"]
    layer3: Float[Tensor, "N C3 H3 W3"]
    layer4: Float[Tensor, "N C4 H4 W4"]


class Trunk(nn.Module, ABC):
    """A network from normalized images to feature maps, without projection head or classifier.

    Attributes:
        channels: of the four feature maps; the last is also the size of the global feature.
    """

    channels: tuple[int, ...]

    @abstractmethod
    def forward(self, image: Float[Tensor, "N 3 H W"]) -> FeatureMaps:
        """All four feature maps."""

    @abstractmethod
    def global_feature(self, image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
        """The global feature of an image, in float32, not normalized."""
