"""Label maps and class names of the validation images, and what their values mean.

`prepare` writes them; of the stages, `evaluate` and `report` alone read them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from stages.core.artefacts import read_array, read_csv, write_csv
from stages.settings.errors import UserError

Kind = Literal["thing", "stuff", ""]  # empty: the data set does not say
IGNORED = 255  # label of pixels that are excluded from all scores
UNMATCHED = -1  # class id of clusters without a matched class
COLUMNS = ("id", "name", "kind")
REMEDY = "delete the folder and run `dvc repro` to make it again"


@dataclass(frozen=True)
class Truth:
    """Ground truth of the validation images.

    Attributes:
        class_names: name of each class id; empty for a data set without labels.
        class_kinds: thing or stuff for each class id; empty strings if unknown.
        maps: class ids uint8 [M, S, S], `IGNORED` for unlabeled pixels; a read-only memory map.
    """

    class_names: tuple[str, ...]
    class_kinds: tuple[Kind, ...]
    maps: np.ndarray

    @property
    def has_labels(self) -> bool:
        """Whether the data set has labels."""
        return bool(self.class_names)


def write_classes(folder: Path, names: tuple[str, ...], kinds: tuple[Kind, ...] = ()) -> None:
    """Write classes.csv next to the label maps (val.npy), which are packed directly into the folder.

    Args:
        folder: folder of the label maps.
        names: names of class ids 0, 1, ...
        kinds: kind of each class, or empty.
    """
    rows = zip(range(len(names)), names, kinds or [""] * len(names), strict=True)
    write_csv(folder / "classes.csv", pd.DataFrame(rows, columns=COLUMNS))


def read_truth(folder: Path) -> Truth:
    """Read label maps, class names and kinds.

    Raises:
        UserError: a file is missing, damaged or not written by `prepare`.
    """
    names, kinds = read_classes(folder / "classes.csv")
    maps = read_array(folder / "val.npy", memory_map=True)
    if maps.dtype != np.uint8 or maps.ndim != 3 or maps.shape[1] != maps.shape[2]:
        raise UserError(
            f"{folder / 'val.npy'}: holds {maps.dtype} {list(maps.shape)}, expected square label maps "
            f"uint8 [M, S, S]; {REMEDY}"
        )
    if not names and any((labels != IGNORED).any() for labels in maps):
        raise UserError(f"{folder / 'classes.csv'}: has no classes, but val.npy has class ids; {REMEDY}")
    return Truth(names, kinds, maps)


def read_classes(path: Path, remedy: str = REMEDY) -> tuple[tuple[str, ...], tuple[Kind, ...]]:
    """Read a table of class names and kinds; `remedy` is the last part of error messages.

    Raises:
        UserError: the file is missing, damaged or not written by `write_classes`.
    """
    table = read_csv(path, ("name", "kind"))
    if tuple(table.columns) != COLUMNS or list(table["id"]) != list(range(len(table))):
        raise UserError(f"{path}: is not a table of {', '.join(COLUMNS)} with ids 0, 1, ...; {remedy}")
    unknown = sorted(set(table["kind"]) - set(get_args(Kind)))
    if unknown:
        raise UserError(f"{path}: has the kind {unknown[0]!r}, expected thing, stuff or nothing; {remedy}")
    return tuple(table["name"]), tuple(table["kind"])


def cluster_name(class_names: tuple[str, ...], class_id: int, cluster: int) -> str:
    """Return the name of the class matched with a cluster, or a name such as "cluster 7"."""
    return f"cluster {cluster}" if class_id == UNMATCHED else class_names[class_id]
