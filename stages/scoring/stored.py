"""A stored confusion matrix with what belongs to it, ready to be scored."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pandas as pd

from stages.dataset.truth import Kind, read_classes
from stages.runtime.artefacts import read_csv
from stages.runtime.errors import UserError, raise_faults
from stages.scoring.confusion_file import Stored, read_confusion
from stages.scoring.outputs import Counted

TAXONOMY_COLUMNS = ["class_id", "class", "kind"]  # of a row for each label
REMEDY = "name a .csv with the columns id, name, kind and ids 0, 1, ..., or a taxonomy of the project"


def read_counted(path: Path, matched_on: Path | None, classes: Path | None, *, transposed: bool) -> Counted:
    """A stored confusion matrix with what belongs to it.

    Args:
        path: of the matrix.
        matched_on: another one, which decides the matching.
        classes: CSV of id, name and kind, or a taxonomy; without it nobody knows what is a thing.
        transposed: lines of matrices are clusters and columns classes.

    Raises:
        UserError: a file is missing or damaged, or they do not belong together.
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
    """Of classes.csv, or of a taxonomy, where several labels make up one class."""
    if not path.is_file():
        raise UserError(f"{path}: not found; {REMEDY}")
    table = read_csv(path)
    if not set(TAXONOMY_COLUMNS) <= set(table.columns):
        return read_classes(path, REMEDY)
    table["class_id"] = pd.to_numeric(table["class_id"], errors="coerce")
    classes = table.drop_duplicates(TAXONOMY_COLUMNS).sort_values("class_id").dropna(subset="class_id")
    if list(classes["class_id"]) != list(range(len(classes))):
        raise UserError(
            f"{path}: gives a class id two names or kinds, or leaves one out; it must be 0, 1, ..."
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
            "name the matrix of another prediction of the same"
        )
    if classes and len(names) != len(stored.confusion):
        yield (
            f"{classes}: names {len(names)} classes, but {path} has {stored.size}; name every class, "
            "or turn the matrix with --transposed"
        )
    elif classes and stored.class_names and names != stored.class_names:
        index = next(
            i for i, pair in enumerate(zip(names, stored.class_names, strict=True)) if len(set(pair)) > 1
        )
        yield (
            f"{classes}: calls class {index} {names[index]!r}, but {path} calls it "
            f"{stored.class_names[index]!r}; name the classes of this matrix, in its order"
        )
