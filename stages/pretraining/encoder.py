"""Networks for self-supervised pretraining: the backbone with its projection heads."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stages.backbone.resnet import global_feature
from stages.backbone.trunk import Trunk


class Encoded(NamedTuple):
    """Output of the encoder."""

    feature: Float[Tensor, "N C"]  # global feature of the backbone
    embedding: Float[Tensor, "N D"]  # unit length, float32


class DenseEncoded(NamedTuple):
    """Output of the dense encoder; S are the cells of the last feature map, row by row."""

    feature: Float[Tensor, "N C"]  # global feature of the backbone
    embedding: Float[Tensor, "N D"]  # unit length, float32
    cell_feature: Float[Tensor, "N S C"]  # cells of the backbone, unit length, float32
    cell: Float[Tensor, "N S D"]  # cells of the dense head, unit length, float32
    pooled: Float[Tensor, "N D"]  # mean of the dense head over the cells, unit length, float32


Encodings = TypeVar("Encodings", bound=Encoded | DenseEncoded)


class HeadedTrunk(nn.Module):
    """Backbone and the two-layer projection head of its global feature; its kinds take different views.

    Args:
        backbone: trunk to pretrain.
        projection_dim: D of the embeddings.
        head_batch_norm: whether the head has batch norm, as in SimCLR and MoCo v3; MoCo v2 has none.
    """

    def __init__(self, backbone: Trunk, projection_dim: int, *, head_batch_norm: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm1d if head_batch_norm else None
        self.backbone = backbone
        self.head = _head(nn.Linear, norm, backbone.channels[-1], projection_dim)

    def embed(self, feature: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        """Unit embeddings of global features, in float32."""
        return F.normalize(self.head(feature).float(), dim=1)

    def heads(self) -> dict[str, Tensor]:
        """The projection head; its names begin with `projection.`, as `label` reads them."""
        return {f"projection.{name}": value for name, value in self.head.state_dict().items()}


class ViewEncoder(HeadedTrunk, ABC, Generic[Encodings]):
    """An encoder of views of one size, which gives `Encodings` of them."""

    @abstractmethod
    def forward(self, image: Float[Tensor, "N 3 H W"]) -> Encodings:
        """Global features and unit embeddings, in float32, and what else a kind of encoder gives."""


class Encoder(ViewEncoder[Encoded]):
    """The encoder of whole views."""

    def forward(self, image: Float[Tensor, "N 3 H W"]) -> Encoded:
        """Global features and unit embeddings, in float32."""
        feature = self.backbone.global_feature(image)
        return Encoded(feature, self.embed(feature))


class MultiCropEncoder(HeadedTrunk):
    """The encoder for views of several sizes (multi-crop of SwAV).

    The trunk sees the views of one size as one batch. The head sees those of all sizes at once, and its batch
    norm takes its statistics from all of them, as in SwAV's code.
    """

    def forward(self, *views: Float[Tensor, "N _ 3 _ _"]) -> Encoded:
        """Global features and unit embeddings, in float32, for all views of the first image, then the next.

        Args:
            views: some views of each image, for each size.
        """
        features = []
        for one in views:
            batch = one.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            features.append(self.backbone.global_feature(batch).unflatten(0, one.shape[:2]))
        feature = torch.cat(features, dim=1).flatten(0, 1)
        return Encoded(feature, self.embed(feature))


class DenseEncoder(ViewEncoder[DenseEncoded]):
    """The encoder with a second head for every cell of the last feature map (DenseCL, 3.2).

    Args:
        backbone: ResNet to pretrain.
        projection_dim: D of the embeddings of images and of cells.
        head_batch_norm: whether both heads have batch norm; DenseCL has none.
    """

    def __init__(self, backbone: Trunk, projection_dim: int, *, head_batch_norm: bool) -> None:
        super().__init__(backbone, projection_dim, head_batch_norm=head_batch_norm)
        norm = nn.BatchNorm2d if head_batch_norm else None
        convolution = partial(nn.Conv2d, kernel_size=1)
        self.dense_head = _head(convolution, norm, backbone.channels[-1], projection_dim)

    def forward(self, image: Float[Tensor, "N 3 H W"]) -> DenseEncoded:
        """Global features and embeddings, and those of each cell, in float32."""
        feature_map = self.backbone(image).layer4
        feature = global_feature(feature_map)
        dense = self.dense_head(feature_map).float()
        return DenseEncoded(
            feature,
            self.embed(feature),
            _unit_cells(feature_map.float()),
            _unit_cells(dense),
            F.normalize(dense.mean((2, 3)), dim=1),
        )


def _head(
    layer: Callable[..., nn.Module], norm: Callable[[int], nn.Module] | None, channels: int, dim: int
) -> nn.Sequential:
    """Two layers with a ReLU between them; batch norm, if there is one, takes the place of the first bias."""
    return nn.Sequential(
        layer(channels, channels, bias=norm is None),
        nn.Identity() if norm is None else norm(channels),
        nn.ReLU(inplace=True),
        layer(channels, dim),
    )


def _unit_cells(feature_map: Float[Tensor, "N C H W"]) -> Float[Tensor, "N S C"]:
    return F.normalize(feature_map.flatten(2).transpose(1, 2), dim=2)


def dilate(backbone: Trunk) -> None:
    """Give layer 4 of a ResNet dilation in place of its stride, so that its map has twice the side (ours).

    The weights keep their meaning: every second cell of the larger map is a cell of the smaller one (the
    "a trous" trick of DeepLab). Published views of 224 px have 7 x 7 cells; small views would have 3 x 3.
    """
    for module in backbone.get_submodule("layer4").modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if module.stride == (2, 2):
            module.stride = (1, 1)
        elif module.kernel_size == (3, 3):
            module.dilation = module.padding = (2, 2)
