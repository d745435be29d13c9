"""Scores as the JSON and CSV that DVC compares."""

import math

import numpy as np
import pandas as pd
from jaxtyping import Int64

from stages.scoring.confusion import Tally
from stages.scoring.matching import UNMATCHED
from stages.scoring.metrics import Scores, score
from stages.scoring.partition_stats import partition_stats

PER_CLASS_COLUMNS = ["class", "cluster", "iou", "accuracy", "pixels"]
CONFUSION_COLUMNS = ["actual", "predicted", "cluster", "pixels"]


def headline(tally: Tally, cluster_to_class: Int64[np.ndarray, " K"]) -> dict[str, float | None]:
    """The figures of one partition; without truth the label-free ones alone. 0 of 0 is null."""
    free = partition_stats(tally.pixels, tally.image_share)
    if not len(tally.confusion):
        return {**free}
    scores = score(tally.confusion, cluster_to_class)
    return {
        "accuracy": _null(scores.accuracy),
        "miou": _null(scores.miou),
        "class_accuracy": _null(scores.class_accuracy),
        "classes_counted": scores.classes_counted,
        **free,
    }


def per_class_table(
    class_names: tuple[str, ...],
    confusion: Int64[np.ndarray, "C K"],
    cluster_to_class: Int64[np.ndarray, " K"],
    scores: Scores,
) -> pd.DataFrame:
    """One row a class; an empty cell is 0 of 0, or no cluster."""
    cluster_of = {int(class_id): cluster for cluster, class_id in enumerate(cluster_to_class)}
    rows = [
        (name, cluster_of.get(index, ""), _cell(scores.iou[index]), _cell(scores.recall[index]), int(pixels))
        for index, (name, pixels) in enumerate(zip(class_names, confusion.sum(1), strict=True))
    ]
    return pd.DataFrame(rows, columns=PER_CLASS_COLUMNS)


def confusion_table(
    class_names: tuple[str, ...],
    confusion: Int64[np.ndarray, "C K"],
    cluster_to_class: Int64[np.ndarray, " K"],
) -> pd.DataFrame:
    """One row for each class and cluster, clusters under the name of their class and in its order.

    `read_confusion` gives the matrix back.
    """
    order = np.lexsort((cluster_to_class, cluster_to_class == UNMATCHED))  # the last key sorts first
    rows = [
        (
            name,
            cluster_name(class_names, cluster_to_class, int(cluster)),
            int(cluster),
            int(confusion[index, cluster]),
        )
        for index, name in enumerate(class_names)
        for cluster in order
    ]
    return pd.DataFrame(rows, columns=CONFUSION_COLUMNS)


def cluster_name(
    class_names: tuple[str, ...], cluster_to_class: Int64[np.ndarray, " K"], cluster: int
) -> str:
    """The name of the matched class, or "cluster 7"."""
    class_id = int(cluster_to_class[cluster])
    return f"cluster {cluster}" if class_id == UNMATCHED else class_names[class_id]


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cell(value: float) -> float | str:
    return round(float(value), 6) if math.isfinite(value) else ""
