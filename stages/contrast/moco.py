"""MoCo v2 (He et al., 2020; Chen et al., 2020): a query encoder learns to recognise its image's key.

The paper takes it as the instance-level self-supervised method (4.1, 5.1).
"""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stages.nets.trunk import Trunk


class Encoder(nn.Module):
    """Backbone, global average pooling and the two-layer projection head.

    Args:
        backbone: the trunk that pretraining is for.
        projection_dim: D of the embeddings.
        head_batch_norm: batch norm in the head, as SimCLR and MoCo v3 have it; MoCo v2 has none.
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

    def forward(self, image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Unit embeddings in float32."""
        return F.normalize(self.head(self.backbone.global_feature(image)).float(), dim=1)


class MoCo(nn.Module):
    """The two encoders and the queue of past keys.

    Batch norm lets a query recognise its key by the statistics of the batch that they share. So the
    batch is split into groups with statistics of their own, and the keys' groups are shuffled: what
    MoCo does across GPUs happens here within one.

    Args:
        encoder: the query encoder; the key encoder starts as its copy.
        queue_size: Q.
        projection_dim: D.
        key_momentum: share of the old key encoder that each step keeps.
        bn_splits: number of groups.
        generator: draws the first queue.
    """

    queue: Tensor
    position: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue_size: int,
        projection_dim: int,
        key_momentum: float,
        bn_splits: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.query_encoder = encoder
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.key_momentum = key_momentum
        self.bn_splits = bn_splits
        queue = F.normalize(torch.randn(queue_size, projection_dim, generator=generator), dim=1)
        self.register_buffer("queue", queue)
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    def queries(self, view: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Embeddings that gradients flow through."""
        return torch.cat([self.query_encoder(group) for group in view.chunk(self.bn_splits)])

    @torch.no_grad()
    def keys(self, view: Float[Tensor, "N 3 H W"], order: Tensor) -> Float[Tensor, "N D"]:
        """Embeddings that do not; `order` is a permutation of the batch that shuffles the groups."""
        shuffled = torch.cat([self.key_encoder(group) for group in view[order].chunk(self.bn_splits)])
        return shuffled[torch.argsort(order)]

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q (MoCo, Eq. 2). Buffers are the key encoder's own."""
        pairs = zip(self.key_encoder.parameters(), self.query_encoder.parameters(), strict=True)
        keys, queries = zip(*pairs, strict=True)
        torch._foreach_lerp_(list(keys), list(queries), 1 - self.key_momentum)

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, "N D"]) -> None:
        """The newest keys take the place of the oldest."""
        size = self.queue.shape[0]
        places = (self.position + torch.arange(len(keys), device=keys.device)) % size
        self.queue[places] = keys
        self.position.copy_((self.position + len(keys)) % size)


def info_nce(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "N D"],
    queue: Float[Tensor, "Q D"],
    temperature: float,
    *,
    batch_negatives: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE (MoCo, Eq. 1) and the share of queries that are nearest to their own key.

    Args:
        query: unit embeddings of one view of some images.
        key: unit embeddings of another view of the same images, row by row.
        queue: unit embeddings of other images.
        temperature: of the softmax over the key and the negatives.
        batch_negatives: whether the other keys of the batch are negatives too, as in MoCo v3. The queue
            alone gives the answer away while the encoder changes fast: old keys look old.
    """
    against_batch = query @ key.T
    if not batch_negatives:
        against_batch = against_batch.diagonal()[:, None]
    target = torch.arange(len(query), device=query.device) * int(batch_negatives)
    logits = torch.cat([against_batch, query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()


@torch.no_grad()
def alignment(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Mean squared distance between two views of an image (Wang & Isola, 2020); 0 is perfect, 2 is chance."""
    return (first - second).square().sum(1).mean()


@torch.no_grad()
def uniformity(embedding: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Log of the mean Gaussian potential of all pairs (Wang & Isola, 2020); 0 is collapse, -4 is uniform."""
    return torch.pdist(embedding).square().mul(-2).exp().mean().log()
