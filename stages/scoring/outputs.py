"""What `evaluate` leaves behind of one confusion matrix, whether it was counted or read from a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from stages.runtime.artefacts import write_csv, write_json
from stages.runtime.environment import describe_environment
from stages.scoring.matching import match_by_overlap
from stages.scoring.metrics import score
from stages.scoring.tables import confusion_table, per_class_table
from stages.scoring.whole_score import as_json, as_table, in_words, whole_score


@dataclass(frozen=True)
class Counted:
    """All that scores need.

    Attributes:
        confusion: pixels of each [class, cluster].
        matched_on: the counts that decide the matching: those of the raw prediction also for the CRF's.
        class_names: of class ids 0, 1, ...
        class_kinds: thing, stuff or nothing, likewise.
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
    """Write the tables that have a path, and print every score; without truth there is nothing to print."""
    confusion, cluster_to_class = counted.confusion, counted.cluster_to_class
    entries = whole_score(confusion, counted.matched_on, counted.class_kinds)
    if readings:
        content = {**as_json(entries, confusion), "environment": describe_environment()}
        write_json(readings, {f"{name}_readings": content})
    if readings_table:
        write_csv(readings_table, as_table(entries))
    if per_class:
        fractions = score(confusion, cluster_to_class)
        write_csv(per_class, per_class_table(counted.class_names, confusion, cluster_to_class, fractions))
    if confusion_table_path:
        write_csv(confusion_table_path, confusion_table(counted.class_names, confusion, cluster_to_class))
    if entries:
        print(in_words(name, entries, confusion), flush=True)
