"""What a verdict on a run is based on, and what it consists of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from stages.settings.schema import WeakLabels


@dataclass(frozen=True)
class Finding:
    """One thing that is good, wrong, or to be known.

    Attributes:
        kind: how it is meant.
        text: what was found, a sentence.
        remedy: what to change, a sentence; empty if nothing is.
    """

    kind: Literal["good", "wrong", "note"]
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Evidence:
    """What a verdict is based on.

    Attributes:
        metrics: figures of `raw`, `refined`, `colour_position` and `truth` from `evaluate`.
        per_class: scores of each class; empty without truth.
        label: figures of `label`.
        data: summary of `prepare`.
        num_clusters: K of the pixel clusters.
        global_k: number of pseudo-labels.
        guidance: weight of guidance that `train` used; what it chose if the setting is auto.
        parts_guide: whether views other than whole images guide.
        balance: train.pixel_loss.balance.
        trains: whether pretraining trains the backbone.
        is_published: whether it starts from a published model (pretrain.init).
        weak: limits of the figures of `label`.
        collapse_below: train.clustering.collapse_below.
        unused_names: why names.yaml is not used; empty if it is.
    """

    metrics: Mapping[str, Mapping[str, float | None]]
    per_class: pd.DataFrame
    label: Mapping[str, Any]
    data: Mapping[str, Any]
    num_clusters: int
    global_k: int
    guidance: float
    parts_guide: bool
    balance: str
    trains: bool
    is_published: bool
    weak: WeakLabels
    collapse_below: float
    unused_names: str = ""
