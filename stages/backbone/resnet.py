"""The ResNet trunk (He et al., 2016), with configurable stem stride and width for small images.

At width 64 and stem stride 4 its parameters have torchvision's names and shapes, so that published
checkpoints can be loaded; torchvision's class fixes both and does not return intermediate feature maps.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from stages.backbone.trunk import FeatureMaps, Trunk

BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(Trunk):
    """Stem and four residual layers, without pooling or classifier.

    Args:
        arch: resnet18 or resnet50.
        width: channels of the stem; the published networks have 64.
        stem_stride: 4 is the published stem (strided convolution, then max pooling); 2 omits the
            pooling, 1 also the stride (ours).
    """

    def __init__(self, arch: str, width: int, stem_stride: int) -> None:
        super().__init__()
        block, depths = BLOCKS[arch]
        self.conv1 = nn.Conv2d(3, width, 7, stride=min(stem_stride, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem_stride == 4 else nn.Identity()
        self.channels = tuple(width * 2**level * block.expansion for level in range(4))
        inputs = (width, *self.channels[:3])
        layers = [
            _layer(block, inputs[i], width * 2**i, depths[i], stride=1 if i == 0 else 2) for i in range(4)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.apply(_initialise)

    def forward(self, image: Float[Tensor, "N 3 H W"]) -> FeatureMaps:
        """All four feature maps of normalized images."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        c1 = self.layer1(stem)
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        return FeatureMaps(c1, c2, c3, self.layer4(c3))

    def global_feature(self, image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
        """Global average pooling of the last feature map (4.2.1)."""
        return global_feature(self(image).layer4)


def global_feature(feature_map: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C"]:
    """Global average pooling of the last feature map (4.2.1), in float32."""
    return feature_map.float().mean(dim=(2, 3))


def _layer(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, depth: int, stride: int
) -> nn.Sequential:
    outputs = planes * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = block(inputs, planes, stride, downsample)
    return nn.Sequential(first, *(block(outputs, planes) for _ in range(depth - 1)))


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
