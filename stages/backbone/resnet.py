"""The ResNet trunk (He et al., 2016), with configurable stem stride and width for small images.

At width 64 and stem stride 4 its parameters have torchvision's names and shapes, so that published
checkpoints can be loaded; torchvision's class fixes both and does not return intermediate feature maps. Its
blocks would do, but importing them loads torch's compiler: seconds and 160 MB for each process.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stages.backbone.trunk import FeatureMaps, Trunk


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2016, Figure 5, left).

    Args:
        inputs: channels of the input.
        planes: channels of the convolutions, and of the result over `expansion`.
        stride: of the first convolution.
        downsample: the shortcut; None for the input itself, where it has the shape of the result.
    """

    expansion = 1

    def __init__(
        self, inputs: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        """The feature map of the block."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions, beside a shortcut (He et al., 2016, Figure 5, right).

    As in torchvision and all published models, the 3x3 convolution has the stride, not the first one as in
    the paper. Arguments as of `BasicBlock`.
    """

    expansion = 4

    def __init__(
        self, inputs: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        """The feature map of the block."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


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
