"""The network for instance-level pretraining: the backbone with a projection head."""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stages.backbone.trunk import Trunk


class Encoded(NamedTuple):
    """Output of the encoder."""

    feature: Float[Tensor, "N C"]  # global feature of the backbone
    embedding: Float[Tensor, "N D"]  # unit length, float32


class Encoder(nn.Module):
    """Backbone, global average pooling and the two-layer projection head.

    Args:
        backbone: trunk to pretrain.
        projection_dim: D of the embeddings.
        head_batch_norm: whether the head has batch norm, as in SimCLR and MoCo v3; MoCo v2 has none.
    """

    def __init__(self, backbone: Trunk, projection_dim: int, *, head_batch_norm: bool) -> None:
        super().__init__()
        channels = backbone.channels[-1]
        norm: nn.Module = nn.BatchNorm1d(channels) if head_batch_norm else nn.Identity()
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Linear(channels, channels, bias=not head_batch_norm),
            norm,
            nn.ReLU(inplace=True),
            nn.Linear(channels, projection_dim),
        )

    def forward(self, image: Float[Tensor, "N 3 H W"]) -> Encoded:
        """Global features and unit embeddings, in float32."""
        feature = self.backbone.global_feature(image)
        return Encoded(feature, F.normalize(self.head(feature).float(), dim=1))

    def heads(self) -> dict[str, Tensor]:
        """The projection head, by the names of `nets.heads`."""
        return {f"projection.{name}": value for name, value in self.head.state_dict().items()}
