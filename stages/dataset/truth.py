"""Label maps and class names of the validation images: for evaluation and the report alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from stages.core.artefacts import read_array, unreadable, write_csv
from stages.settings.errors import UserError

Kind = Literal["thing", "stuff", ""]  # empty: the data set does not say
IGNORED = 255  # of a label map: pixels that no score counts
UNMATCHED = -1  # in place of a class id: of a cluster that no class was matched with
COLUMNS = ("id", "name", "kind")
REMEDY = "delete the folder and run `dvc repro` to make it again"


@dataclass(frozen=True)
class Truth:
    """What the validation images show, by annotation.

    Attributes:
        class_names: the name of class id i at place i; empty where the data set has no labels.
        class_kinds: whether class id i is a thing or stuff, likewise; empty text where nobody says.
        maps: class ids uint8 [M, S, S], `IGNORED` where there is none; a read-only memory map.
    """

    class_names: tuple[str, ...]
    class_kinds: tuple[Kind, ...]
    maps: np.ndarray

    @property
    def has_labels(self) -> bool:
        """Whether the data set came with labels."""
        return bool(self.class_names)


def write_classes(folder: Path, names: tuple[str, ...], kinds: tuple[Kind, ...] = ()) -> None:
    """Write classes.csv beside the maps (val.npy), which are packed straight into the folder.

    Args:
        folder: of the truth.
        names: of class ids 0, 1, ...
        kinds: one for each name, or none at all.
    """
    rows = zip(range(len(names)), names, kinds or [""] * len(names), strict=True)
    write_csv(folder / "classes.csv", pd.DataFrame(rows, columns=COLUMNS))


def read_truth(folder: Path) -> Truth:
    """Read label maps, class names and kinds.

    Raises:
        UserError: a file is missing or damaged, or is not what `prepare` writes.
    """
    names, kinds = read_classes(folder / "classes.csv")
    maps = read_array(folder / "val.npy", memory_map=True)
    if maps.dtype != np.uint8 or maps.ndim != 3 or maps.shape[1] != maps.shape[2]:
        raise UserError(
            f"{folder / 'val.npy'}: holds {maps.dtype} {list(maps.shape)}, expected square label maps "
            f"uint8 [M, S, S]; {REMEDY}"
        )
    if not names and any((labels != IGNORED).any() for labels in maps):
        raise UserError(f"{folder / 'classes.csv'}: names no class, but val.npy has class ids; {REMEDY}")
    return Truth(names, kinds, maps)


def read_classes(path: Path, remedy: str = REMEDY) -> tuple[tuple[str, ...], tuple[Kind, ...]]:
    """Read a table of class names and kinds; `remedy` ends what is said of a damaged one.

    Raises:
        UserError: the file is missing or damaged, or is not what `write_classes` writes.
    """
    try:
        # A class may be called 007, or NA.
        table = pd.read_csv(path, keep_default_na=False, dtype={"name": str, "kind": str})
    except (OSError, ValueError) as error:
        raise UserError(unreadable(path, "a CSV table", error)) from error
    if tuple(table.columns) != COLUMNS or list(table["id"]) != list(range(len(table))):
        raise UserError(f"{path}: is no table of {', '.join(COLUMNS)} with ids 0, 1, ...; {remedy}")
    unknown = sorted(set(table["kind"]) - set(get_args(Kind)))
    if unknown:
        raise UserError(f"{path}: has the kind {unknown[0]!r}, expected thing, stuff or nothing; {remedy}")
    return tuple(table["name"]), tuple(table["kind"])


def cluster_name(class_names: tuple[str, ...], class_id: int, cluster: int) -> str:
    """The name of the class that a cluster was matched with, or "cluster 7"."""
    return f"cluster {cluster}" if class_id == UNMATCHED else class_names[class_id]
