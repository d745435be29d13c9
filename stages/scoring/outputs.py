"""Outputs of `evaluate` for one confusion matrix, counted or read from a file."""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int64

from stages.core.artefacts import write_csv, write_metrics
from stages.dataset.truth import UNMATCHED, cluster_name
from stages.runtime.environment import describe_environment
from stages.runtime.progress import tell
from stages.scoring.confusion import Tally, partition_stats
from stages.scoring.metrics import Scores, score
from stages.scoring.readings import Matched, as_json, as_table, in_words, or_empty, or_null, whole_score

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


def write_outputs(
    one_to_one: Matched,
    name: str,
    *,
    readings: Path | None,
    readings_table: Path | None,
    per_class: Path | None,
    confusion_table_path: Path | None,
) -> None:
    """Write the tables that have a path, and print all scores if there is truth."""
    class_names, confusion = one_to_one.counted.class_names, one_to_one.counted.confusion
    cluster_to_class = one_to_one.cluster_to_class
    entries = whole_score(one_to_one)
    if readings:
        content = {**as_json(entries, confusion), "environment": describe_environment()}
        write_metrics(readings, {f"{name}_readings": content})
    if readings_table:
        write_csv(readings_table, as_table(entries))
    if per_class:
        fractions = score(confusion, cluster_to_class)
        write_csv(per_class, per_class_table(class_names, confusion, cluster_to_class, fractions))
    if confusion_table_path:
        write_csv(confusion_table_path, confusion_table(class_names, confusion, cluster_to_class))
    if entries:
        tell(in_words(name, entries, confusion))
