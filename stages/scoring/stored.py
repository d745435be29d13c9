"""Reads a stored confusion matrix with class names and kinds for scoring."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pandas as pd

from stages.core.artefacts import read_csv
from stages.dataset.truth import Kind, read_classes
from stages.scoring.confusion import Counted
from stages.scoring.stored_matrix import Stored, read_confusion
from stages.settings.errors import UserError, raise_faults

TAXONOMY_COLUMNS = ["class_id", "class", "kind"]  # one row per label
REMEDY = "give a .csv with the columns id, name, kind and ids 0, 1, ..., or a taxonomy of the project"


def read_counted(path: Path, matched_on: Path | None, classes: Path | None, *, transposed: bool) -> Counted:
    """Read a stored confusion matrix with its matching counts, class names and kinds.

    Args:
        path: file of the matrix.
        matched_on: another matrix, used for the matching.
        classes: CSV of id, name and kind, or a taxonomy; without it, classes have no kinds.
        transposed: whether rows are clusters and columns are classes.

    Raises:
        UserError: a file is missing or damaged, or the files do not match.
    """
    stored = read_confusion(path, transposed=transposed)
    decides = read_confusion(matched_on, transposed=transposed) if matched_on else stored
    count = len(stored.confusion)
    names = stored.class_names or tuple(f"class {index}" for index in range(count))
    kinds: tuple[str, ...] = ("",) * count
    if classes:
        names, kinds = _names_and_kinds(classes)
    raise_faults(_misfits(stored, decides, path=path, matched_on=matched_on, classes=classes, names=names))
    return Counted(stored.confusion, decides.confusion, names, kinds)


def _names_and_kinds(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read classes.csv, or a taxonomy that maps several labels to one class."""
    if not path.is_file():
        raise UserError(f"{path}: not found; {REMEDY}")
    table = read_csv(path, ("class",))
    if not set(TAXONOMY_COLUMNS) <= set(table.columns):
        return read_classes(path, REMEDY)
    table["class_id"] = pd.to_numeric(table["class_id"], errors="coerce")
    classes = table.drop_duplicates(TAXONOMY_COLUMNS).sort_values("class_id").dropna(subset="class_id")
    if list(classes["class_id"]) != list(range(len(classes))):
        raise UserError(
            f"{path}: each class id needs exactly one name and kind, and ids must be 0, 1, ... without gaps"
        )
    unknown = sorted(set(classes["kind"]) - set(get_args(Kind)))
    if unknown:
        raise UserError(f"{path}: has the kind {unknown[0]!r}, expected thing, stuff or nothing; {REMEDY}")
    return tuple(classes["class"]), tuple(classes["kind"])


def _misfits(
    stored: Stored,
    decides: Stored,
    *,
    path: Path,
    matched_on: Path | None,
    classes: Path | None,
    names: tuple[str, ...],
) -> Iterator[str]:
    if stored.confusion.shape != decides.confusion.shape:
        yield (
            f"{matched_on}: has {decides.size}, but {path} has {stored.size}; "
            "give a matrix with the same classes and clusters"
        )
    if classes and len(names) != len(stored.confusion):
        yield (
            f"{classes}: names {len(names)} classes, but {path} has {stored.size}; list every class, "
            "or transpose the matrix with --transposed"
        )
    elif classes and stored.class_names and names != stored.class_names:
        index = next(
            i for i, pair in enumerate(zip(names, stored.class_names, strict=True)) if len(set(pair)) > 1
        )
        yield (
            f"{classes}: calls class {index} {names[index]!r}, but {path} calls it "
            f"{stored.class_names[index]!r}; list the classes in the order of this matrix"
        )
