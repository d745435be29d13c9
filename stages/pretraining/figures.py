"""Label-free quality figures of embeddings, tracked over the epochs, and warnings derived from them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stages.settings.schema_pretrain import Pretrain


class Measured(NamedTuple):
    """Figures of one step of a method; each is the mean over this process's share of the batch."""

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
    """Share of views whose nearest neighbor in `second` is row `start` + i, the other view of their image."""
    own = start + torch.arange(len(first), device=first.device)
    return ((first @ second.T).argmax(1) == own).float().mean()


@torch.no_grad()
def perplexity(share: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
    """exp of the entropy of each row: its effective number of entries, from 1 to P."""
    return torch.special.entr(share).sum(1).exp()


def count_chosen(chosen: Int[Tensor, "..."], num_prototypes: int) -> Float[Tensor, " P"]:
    """How often each prototype was chosen; `bincount` would wait for a GPU."""
    prototypes = torch.arange(num_prototypes, device=chosen.device)
    return (chosen.flatten()[:, None] == prototypes).float().sum(0)


def take_usage(assigned: Float[Tensor, " P"]) -> float:
    """Effective share of the prototypes by how often each was chosen; sets these counts to zero."""
    used = float(perplexity((assigned / assigned.sum())[None]))
    assigned.zero_()
    return used / len(assigned)


class FeatureMoments:
    """Accumulates moments over an epoch to compute the effective rank of all its features.

    Uses float64, because float32 loses the variance of weak directions.

    Args:
        channels: C of the features.
        device: device of the features.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self.gram = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, feature: Float[Tensor, "N C"]) -> None:
        """Add features, normalized to unit length."""
        unit = F.normalize(feature.double(), dim=1)
        self.count += len(unit)
        self.sum += unit.sum(0)
        self.gram.addmm_(unit.T, unit)

    def effective_rank(self) -> float:
        """exp of the entropy of the singular values (Roy & Vetterli, 2007) of centered features: 1 to C."""
        mean = self.sum / self.count
        covariance = self.gram / self.count - mean[:, None] * mean
        squared = torch.linalg.eigvalsh(covariance)
        rounding = len(squared) * torch.finfo(squared.dtype).eps  # of features of unit length
        singular = squared.where(squared > rounding, 0).sqrt()
        share = singular / singular.sum().clamp_min(1e-12)
        return float(perplexity(share[None]))

    def reset(self) -> None:
        """Set all sums to zero."""
        for part in (self.count, self.sum, self.gram):
            part.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        return {"count": self.count, "sum": self.sum, "gram": self.gram}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Restore saved sums."""
        for name, part in self.state_dict().items():
            part.copy_(saved[name])


CHANCE_MARGIN = 0.01  # maximum distance of the loss from ln K
COLLAPSED_UNIFORMITY = -0.05  # embeddings within 0.16 of each other (root mean square); -4 is uniform
COLLAPSED_RANK = 1.5  # effective number of directions in which features vary
FEWEST_PROTOTYPES = 1.5  # effective number of prototypes in use

SEEN = {
    "stuck_at_chance": "the loss stays at ln({candidates}) = {chance:.4g}, the level of random guessing",
    "collapsed": "all images have nearly the same embedding (uniformity {uniformity:.2g}; -4 is uniform)",
    "one_direction": "features vary along a single direction (effective rank {effective_rank:.3g})",
    "one_prototype": "nearly all cells belong to one of {prototypes} prototypes ({used:.3g} in effect)",
}
LOOK_FIRST = "look at the images first, which may be empty or alike (warnings of `prepare`); else "
# Remedies from issues of MoCo, SwAV and lightly, most frequent first.
_MOCO = {
    "stuck_at_chance": "raise pretrain.lr, lower pretrain.temperature, or update the key encoder faster "
    "(pretrain.key_momentum: 0 and pretrain.queue_size: 0 select values automatically)",
    "collapsed": "lower pretrain.lr, raise pretrain.key_momentum, or augment more strongly "
    "(pretrain.crop_area)",
    "one_direction": "lower pretrain.lr or pretrain.weight_decay, or augment colors more strongly "
    "(pretrain.photometric)",
}
CURES = {
    "mocov2": _MOCO,
    "densecl": _MOCO,
    "swav": {
        "stuck_at_chance": "raise pretrain.swav.freeze_epochs, lower pretrain.swav.epsilon (SwAV: 0.05, or "
        "0.03), lower pretrain.swav.local_crops, or set pretrain.head_batch_norm: false",
        "collapsed": "lower pretrain.lr, lower pretrain.swav.epsilon (SwAV: 0.05, or 0.03), or start the "
        "queue later (pretrain.swav.queue_from_epoch)",
        "one_direction": "lower pretrain.lr, or lower pretrain.swav.num_prototypes",
    },
    "slotcon": {
        "collapsed": "lower pretrain.lr, raise pretrain.key_momentum, or augment more strongly "
        "(pretrain.crop_area)",
        "one_direction": "lower pretrain.lr or pretrain.weight_decay, or augment colors more strongly "
        "(pretrain.photometric)",
        "one_prototype": "lower pretrain.lr, lower pretrain.slotcon.centre_momentum, or raise "
        "pretrain.slotcon.teacher_temperature",
    },
}
NAN_CURES = {
    **dict.fromkeys(("mocov2", "densecl", "slotcon"), "lower pretrain.lr, or raise pretrain.warmup_epochs"),
    "swav": "lower pretrain.lr, raise pretrain.swav.epsilon, or start the queue later "
    "(pretrain.swav.queue_from_epoch)",
}


class Expected(NamedTuple):
    """What a method's figures are compared with."""

    num_candidates: int | None  # random guessing has a loss of its logarithm; None: no fixed level
    num_prototypes: int | None = None  # whose use tells of a collapse; None: none do


def find_faults(figures: Mapping[str, Any], expected: Expected) -> list[str]:
    """Names of the faults found after an epoch.

    Args:
        figures: loss, uniformity, effective_rank and usage of the epoch.
        expected: numbers of candidates and of prototypes.
    """
    candidates, prototypes = expected
    signs = {
        "stuck_at_chance": candidates is not None
        and abs(figures["loss"] - math.log(candidates)) < CHANCE_MARGIN,
        "collapsed": figures["uniformity"] > COLLAPSED_UNIFORMITY,
        "one_direction": figures["effective_rank"] < COLLAPSED_RANK,
        "one_prototype": prototypes is not None and figures["usage"] * prototypes < FEWEST_PROTOTYPES,
    }
    return [name for name, seen in signs.items() if seen]


def explain(fault: str, figures: Mapping[str, Any], expected: Expected, method: str) -> str:
    """Description of a fault, with remedies."""
    candidates, prototypes = expected
    numbers = {
        "candidates": candidates,
        "chance": math.log(candidates or 1),
        "prototypes": prototypes,
        "used": figures["usage"] * (prototypes or 1),
    }
    seen = SEEN[fault].format(**numbers, **figures)
    first = "" if fault == "stuck_at_chance" else LOOK_FIRST
    return f"{fault}: {seen}; {first}{CURES[method][fault]}"


def is_settled(epoch: int, settings: Pretrain) -> bool:
    """Whether an epoch is past warm-up and frozen prototypes, during which chance-level loss is normal.

    Args:
        epoch: 1 is the first.
        settings: `pretrain` of params.yaml.
    """
    frozen = settings.swav.freeze_epochs if settings.method == "swav" else 0
    return epoch > max(settings.warmup_epochs, frozen)


def summarise(history: pd.DataFrame, settings: Pretrain, expected: Expected) -> dict[str, Any]:
    """The figures of the last epoch, the chance-level loss, and the number of epochs with each fault."""
    if not len(history):
        return {}
    rows = [row for row in history.to_dict("records") if is_settled(row["epoch"], settings)]
    found = [fault for row in rows for fault in find_faults(row, expected)]
    chance = {} if expected.num_candidates is None else {"chance_loss": math.log(expected.num_candidates)}
    return {
        **history.iloc[-1].to_dict(),
        **chance,
        "epochs_with_fault": {fault: found.count(fault) for fault in CURES[settings.method]},
    }
