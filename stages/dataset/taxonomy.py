"""Mapping of label ids to classes: tables for published data sets, the identity for user data."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stages.dataset.truth import IGNORED, Kind


@dataclass(frozen=True)
class Taxonomy:
    """Mapping from label ids in the files to class ids used for scoring.

    Attributes:
        class_names: name of each class id.
        class_kinds: thing or stuff for each class id; empty if unknown.
        class_ids: class id of each label id, `IGNORED` for labels without a class.
        rule: description of the valid label ids, for messages.
    """

    class_names: tuple[str, ...]
    class_kinds: tuple[Kind, ...]
    class_ids: tuple[int, ...]
    rule: str

    def to_class_ids(self, label_ids: np.ndarray) -> np.ndarray:
        """Convert known or `IGNORED` label ids to class ids uint8."""
        table = np.full(IGNORED + 1, IGNORED, np.uint8)
        table[: len(self.class_ids)] = self.class_ids
        return table[label_ids]

    def unknown(self, label_ids: np.ndarray) -> np.ndarray:
        """Return the sorted label ids that are unknown to the taxonomy."""
        outside = (label_ids < 0) | (label_ids >= len(self.class_ids))
        return np.setdiff1d(label_ids[outside], [IGNORED])


def plain(class_names: tuple[str, ...]) -> Taxonomy:
    """Build a taxonomy whose label ids are class ids, named by the lines of classes.txt."""
    count = len(class_names)
    rule = f"classes.txt has {count} classes (ids 0 to {count - 1}, and {IGNORED} = ignored)"
    return Taxonomy(class_names, (), tuple(range(count)), rule)


def read_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy .csv of a reader: label id (0, 1, ...), class, and kind (thing or stuff) per line.

    Labels without a class are ignored.
    """
    table = pd.read_csv(path, keep_default_na=False, dtype={"class_id": str})
    assert list(table["label_id"]) == list(range(len(table)))
    counted = table[table["class_id"] != ""].astype({"class_id": int})
    classes = counted.drop_duplicates(["class_id", "class", "kind"]).sort_values("class_id")
    assert list(classes["class_id"]) == list(range(len(classes)))
    ids = tuple(int(text) if text else IGNORED for text in table["class_id"])
    rule = f"{path.stem} has label ids 0 to {len(ids) - 1}, and {IGNORED} = unlabeled"
    return Taxonomy(tuple(classes["class"]), tuple(classes["kind"]), ids, rule)
