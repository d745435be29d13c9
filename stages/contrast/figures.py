"""What shows, without any label, whether embeddings are good: each figure is watched over the epochs."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Measured(NamedTuple):
    """What a method measures in one step; each figure is the mean over this process's share of the batch."""

    loss: Float[Tensor, ""]
    instance_accuracy: Float[Tensor, ""]
    alignment: Float[Tensor, ""]
    uniformity: Float[Tensor, ""]
    feature: Float[Tensor, "n C"]  # of one view, without gradient


@torch.no_grad()
def alignment(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Mean squared distance between two views of an image (Wang & Isola, 2020); 0 is perfect, 2 is chance."""
    return (first - second).square().sum(1).mean()


@torch.no_grad()
def uniformity(embedding: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Log of the mean Gaussian potential of all pairs (Wang & Isola, 2020); 0 is collapse, -4 is uniform."""
    return torch.pdist(embedding).square().mul(-2).exp().mean().log()


@torch.no_grad()
def instance_accuracy(first: Float[Tensor, "n D"], second: Float[Tensor, "N D"], start: int) -> Tensor:
    """Share of views nearest to the other view of their image, which is row `start` + i of `second`."""
    own = start + torch.arange(len(first), device=first.device)
    return ((first @ second.T).argmax(1) == own).float().mean()


@torch.no_grad()
def perplexity(share: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
    """exp of the entropy of each row: how many of its entries really take part, from 1 to P."""
    return torch.special.entr(share).sum(1).exp()


class Moments:
    """Sums over an epoch that give the effective rank of all its features, whatever their number.

    In float64: beside the variance of some directions that of others is lost in float32.

    Args:
        channels: C of the features.
        device: where they are.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self.gram = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, feature: Float[Tensor, "N C"]) -> None:
        """Take note of some features; only their direction counts."""
        unit = F.normalize(feature.double(), dim=1)
        self.count += len(unit)
        self.sum += unit.sum(0)
        self.gram.addmm_(unit.T, unit)

    def effective_rank(self) -> float:
        """exp of the entropy of the singular values (Roy & Vetterli, 2007) of centred features: 1 to C."""
        mean = self.sum / self.count
        covariance = self.gram / self.count - mean[:, None] * mean
        singular = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt()
        share = singular / singular.sum().clamp_min(1e-12)
        return math.exp(float(torch.special.entr(share).sum()))

    def reset(self) -> None:
        """Begin anew."""
        for part in (self.count, self.sum, self.gram):
            part.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        return {"count": self.count, "sum": self.sum, "gram": self.gram}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Go on from saved sums."""
        for name, part in self.state_dict().items():
            part.copy_(saved[name])
