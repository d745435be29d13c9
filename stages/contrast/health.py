"""Trainings that go wrong, told from their figures without any label, and what is known to help."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from stages.runtime.schema import Pretrain

CHANCE_MARGIN = 0.01  # of the loss about ln K
COLLAPSED_UNIFORMITY = -0.05  # embeddings within 0.16 of each other (root mean square); -4 is uniform
COLLAPSED_RANK = 1.5  # directions in which features still differ

SEEN = {
    "stuck_at_chance": "the loss stays at ln({candidates}) = {chance:.4g}, that of a guess",
    "collapsed": "all images have nearly the same embedding (uniformity {uniformity:.2g}; -4 is uniform)",
    "one_direction": "features differ along a single direction (effective rank {effective_rank:.3g})",
}
# Issues of MoCo, SwAV and lightly name these cures, the most frequent first.
CURES = {
    "mocov2": {
        "stuck_at_chance": "raise pretrain.lr, lower pretrain.temperature, or let keys follow faster "
        "(pretrain.key_momentum: 0 and pretrain.queue_size: 0 choose by rule)",
        "collapsed": "lower pretrain.lr, raise pretrain.key_momentum, or vary the views more "
        "(pretrain.crop_area)",
        "one_direction": "lower pretrain.lr or pretrain.weight_decay, or vary the colours more "
        "(pretrain.photometric)",
    },
    "swav": {
        "stuck_at_chance": "lower pretrain.swav.epsilon to 0.03, raise pretrain.swav.freeze_epochs, take "
        "fewer pretrain.swav.local_crops, or set pretrain.head_batch_norm: false",
        "collapsed": "lower pretrain.swav.epsilon to 0.03, lower pretrain.lr, or let the queue begin later "
        "(pretrain.swav.queue_from_epoch)",
        "one_direction": "lower pretrain.lr, or take fewer pretrain.swav.num_prototypes",
    },
}
NAN_CURES = {
    "mocov2": "lower pretrain.lr, or lengthen pretrain.warmup_epochs",
    "swav": "lower pretrain.lr, raise pretrain.swav.epsilon, or let the queue begin later "
    "(pretrain.swav.queue_from_epoch)",
}


def find_faults(figures: Mapping[str, Any], num_candidates: int) -> list[str]:
    """Names of what is wrong after an epoch.

    Args:
        figures: loss, uniformity and effective_rank of the epoch.
        num_candidates: K; a guess among them has a loss of ln K.
    """
    signs = {
        "stuck_at_chance": abs(figures["loss"] - math.log(num_candidates)) < CHANCE_MARGIN,
        "collapsed": figures["uniformity"] > COLLAPSED_UNIFORMITY,
        "one_direction": figures["effective_rank"] < COLLAPSED_RANK,
    }
    return [name for name, seen in signs.items() if seen]


def explain(fault: str, figures: Mapping[str, Any], num_candidates: int, method: str) -> str:
    """What was seen, and the cure."""
    chance = math.log(num_candidates)
    seen = SEEN[fault].format(candidates=num_candidates, chance=chance, **figures)
    return f"{fault}: {seen}; {CURES[method][fault]}"


def is_settled(epoch: int, settings: Pretrain) -> bool:
    """Whether an epoch is past the rise of the rate and the frozen prototypes, where a guess is normal.

    Args:
        epoch: 1 is the first.
        settings: `pretrain` of params.yaml.
    """
    frozen = settings.swav.freeze_epochs if settings.method == "swav" else 0
    return epoch > max(settings.warmup_epochs, frozen)


def summarise(history: pd.DataFrame, settings: Pretrain, num_candidates: int) -> dict[str, Any]:
    """The figures of the last epoch, the loss of a guess, and in how many epochs each fault was seen."""
    if not len(history):
        return {}
    rows = [row for row in history.to_dict("records") if is_settled(row["epoch"], settings)]
    found = [fault for row in rows for fault in find_faults(row, num_candidates)]
    return {
        **history.iloc[-1].to_dict(),
        "chance_loss": math.log(num_candidates),
        "epochs_with_fault": {fault: found.count(fault) for fault in SEEN},
    }
