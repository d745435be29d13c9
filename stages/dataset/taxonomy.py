"""What the ids of label maps mean: tables of published data sets, and a plain rule for one's own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stages.dataset.truth import IGNORED, Kind


@dataclass(frozen=True)
class Taxonomy:
    """From label ids, as the files hold them, to class ids, as scores count them.

    Attributes:
        class_names: the name of class id i at place i.
        class_kinds: thing or stuff, one for each name; empty where nobody says.
        class_ids: the class id of label id i at place i, `IGNORED` for a label that is no class.
        rule: what label ids there may be, for messages.
    """

    class_names: tuple[str, ...]
    class_kinds: tuple[Kind, ...]
    class_ids: tuple[int, ...]
    rule: str

    def to_class_ids(self, label_ids: np.ndarray) -> np.ndarray:
        """Class ids uint8 of label ids that are known or `IGNORED`."""
        table = np.full(IGNORED + 1, IGNORED, np.uint8)
        table[: len(self.class_ids)] = self.class_ids
        return table[label_ids]

    def unknown(self, label_ids: np.ndarray) -> np.ndarray:
        """Those label ids, sorted, that the taxonomy does not know."""
        outside = (label_ids < 0) | (label_ids >= len(self.class_ids))
        return np.setdiff1d(label_ids[outside], [IGNORED])


def plain(class_names: tuple[str, ...]) -> Taxonomy:
    """Label ids that are class ids, named by a line of classes.txt each."""
    count = len(class_names)
    rule = f"classes.txt names {count} classes (ids 0 to {count - 1}, and {IGNORED} = ignore)"
    return Taxonomy(class_names, (), tuple(range(count)), rule)


def read_taxonomy(path: Path) -> Taxonomy:
    """Read a .csv of a reader: a line for each label id 0, 1, ..., its class, and thing or stuff.

    A label without a class is ignored.
    """
    table = pd.read_csv(path, keep_default_na=False, dtype={"class_id": str})
    assert list(table["label_id"]) == list(range(len(table)))
    counted = table[table["class_id"] != ""].astype({"class_id": int})
    classes = counted.drop_duplicates(["class_id", "class", "kind"]).sort_values("class_id")
    assert list(classes["class_id"]) == list(range(len(classes)))
    ids = tuple(int(text) if text else IGNORED for text in table["class_id"])
    rule = f"{path.stem} knows the label ids 0 to {len(ids) - 1}, and {IGNORED} = unlabelled"
    return Taxonomy(tuple(classes["class"]), tuple(classes["kind"]), ids, rule)
