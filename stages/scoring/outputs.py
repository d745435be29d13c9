"""Outputs of `evaluate` for one confusion matrix, counted or read from a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int64

from stages.core.artefacts import write_csv, write_metrics
from stages.dataset.truth import UNMATCHED, cluster_name
from stages.runtime.environment import describe_environment
from stages.runtime.progress import tell
from stages.scoring.confusion import Tally, partition_stats
from stages.scoring.metrics import Scores, match_by_overlap, score
from stages.scoring.readings import as_json, as_table, in_words, or_empty, or_null, whole_score

PER_CLASS_COLUMNS = ["class", "cluster", "iou", "accuracy", "pixels"]
CONFUSION_COLUMNS = ["actual", "predicted", "cluster", "pixels"]


def headline(tally: Tally, cluster_to_class: Int64[np.ndarray, " K"]) -> dict[str, float | None]:
    """The headline figures of one partition; without truth, only the label-free ones. 0 / 0 is null."""
    free = partition_stats(tally.pixels, tally.image_share)
    if not len(tally.confusion):
        return {**free}
    scores = score(tally.confusion, cluster_to_class)
    return {
        "accuracy": or_null(scores.accuracy),
        "miou": or_null(scores.miou),
        "class_accuracy": or_null(scores.class_accuracy),
        "classes_counted": scores.classes_counted,
        **free,
    }


def per_class_table(
    class_names: tuple[str, ...],
    confusion: Int64[np.ndarray, "C K"],
    cluster_to_class: Int64[np.ndarray, " K"],
    scores: Scores,
) -> pd.DataFrame:
    """One row per class; an empty cell means 0 / 0 or no cluster."""
    cluster_of = {int(class_id): cluster for cluster, class_id in enumerate(cluster_to_class)}
    rows = [
        (
            name,
            cluster_of.get(index, ""),
            or_empty(scores.iou[index]),
            or_empty(scores.recall[index]),
            int(pixels),
        )
        for index, (name, pixels) in enumerate(zip(class_names, confusion.sum(1), strict=True))
    ]
    return pd.DataFrame(rows, columns=PER_CLASS_COLUMNS)


def confusion_table(
    class_names: tuple[str, ...],
    confusion: Int64[np.ndarray, "C K"],
    cluster_to_class: Int64[np.ndarray, " K"],
) -> pd.DataFrame:
    """One row per class and cluster; clusters are named after their class and sorted by it.

    `read_confusion` reads the matrix back.
    """
    class_of = cluster_to_class.tolist()
    order = np.lexsort((cluster_to_class, cluster_to_class == UNMATCHED))  # the last key sorts first
    rows = [
        (
            name,
            cluster_name(class_names, class_of[cluster], int(cluster)),
            int(cluster),
            int(confusion[index, cluster]),
        )
        for index, name in enumerate(class_names)
        for cluster in order
    ]
    return pd.DataFrame(rows, columns=CONFUSION_COLUMNS)


@dataclass(frozen=True)
class Counted:
    """The inputs of all scores.

    Attributes:
        confusion: pixel count of each [class, cluster].
        matched_on: counts used for the matching; for CRF results too, those of the raw prediction.
        class_names: names of class ids 0, 1, ...
        class_kinds: thing, stuff or nothing, for the same ids.
    """

    confusion: Int64[np.ndarray, "C K"]
    matched_on: Int64[np.ndarray, "C K"]
    class_names: tuple[str, ...]
    class_kinds: tuple[str, ...]

    @property
    def cluster_to_class(self) -> Int64[np.ndarray, " K"]:
        """The one-to-one matching."""
        return match_by_overlap(self.matched_on)


def write_outputs(
    counted: Counted,
    name: str,
    *,
    readings: Path | None,
    readings_table: Path | None,
    per_class: Path | None,
    confusion_table_path: Path | None,
) -> None:
    """Write the tables that have a path, and print all scores if there is truth."""
    confusion, cluster_to_class = counted.confusion, counted.cluster_to_class
    entries = whole_score(confusion, counted.matched_on, counted.class_kinds)
    if readings:
        content = {**as_json(entries, confusion), "environment": describe_environment()}
        write_metrics(readings, {f"{name}_readings": content})
    if readings_table:
        write_csv(readings_table, as_table(entries))
    if per_class:
        fractions = score(confusion, cluster_to_class)
        write_csv(per_class, per_class_table(counted.class_names, confusion, cluster_to_class, fractions))
    if confusion_table_path:
        write_csv(confusion_table_path, confusion_table(counted.class_names, confusion, cluster_to_class))
    if entries:
        tell(in_words(name, entries, confusion))
