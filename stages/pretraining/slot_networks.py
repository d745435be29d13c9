"""The networks of SlotCon (Wen et al., 2022): what projects cells, and what predicts slots."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stages.backbone.batch_norm import SplitBatchNorm
from stages.backbone.resnet import global_feature
from stages.backbone.trunk import Trunk
from stages.pretraining.row_norm import normalize_rows

HEAD_STD = 0.02  # of the initial weights of projector and predictor, as in DINO


class Projected(NamedTuple):
    """Output of the encoder."""

    feature: Float[Tensor, "N C"]  # global feature of the backbone
    cell: Float[Tensor, "N D h w"]  # of the projector, float32


class SlotEncoder(nn.Module):
    """Backbone, projector of every cell, and prototypes: all that the teacher averages.

    Args:
        backbone: ResNet to pretrain.
        hidden_dim: channels between the three layers of the projector.
        projection_dim: D of cells, slots and prototypes.
        num_prototypes: K.
    """

    def __init__(self, backbone: Trunk, hidden_dim: int, projection_dim: int, num_prototypes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = nn.Sequential(
            nn.Conv2d(backbone.channels[-1], hidden_dim, 1),
            nn.BatchNorm2d(hidden_dim),
            nn.GELU(),
            nn.Conv2d(hidden_dim, hidden_dim, 1),
            nn.BatchNorm2d(hidden_dim),
            nn.GELU(),
            nn.Conv2d(hidden_dim, projection_dim, 1),
        )
        self.projector.apply(_initialise)
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, projection_dim))

    def forward(self, image: Float[Tensor, "N 3 H W"]) -> Projected:
        """Global features and projected cells."""
        feature_map = self.backbone(image).layer4
        return Projected(global_feature(feature_map), self.projector(feature_map).float())


class SlotPredictor(nn.Sequential):
    """Predicts the slots of the other view.

    Args:
        dim: D of slots.
        hidden_dim: channels between its three layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(
            nn.Linear(dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, dim),
        )
        self.apply(_initialise)

    def forward(self, slot: Float[Tensor, "M D"], is_asked: Bool[Tensor, " M"] | None = None) -> Tensor:
        """Predictions, of which those count for batch norm that are asked for; by default all."""
        for layer in self:
            if is_asked is not None and isinstance(layer, SplitBatchNorm):
                slot = normalize_rows(layer, slot, is_asked)
            else:
                slot = layer(slot)
        return slot


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=HEAD_STD)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
