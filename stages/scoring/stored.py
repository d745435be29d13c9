"""Reads a stored confusion matrix with class names and kinds for scoring."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from jaxtyping import Int64

from stages.core.artefacts import read_array, read_csv
from stages.dataset.truth import Kind, read_classes
from stages.scoring.metrics import MAX_EXACT
from stages.scoring.outputs import Counted
from stages.settings.errors import UserError, raise_faults

MAX_SIDE = 1024  # maximum number of classes or clusters
OWN_COLUMNS = {"actual", "predicted", "pixels"}  # columns of the table of `evaluate`, besides cluster
COUNT = "expected a count of pixels: a whole number, 0 or more"


@dataclass(frozen=True)
class Stored:
    """Pixel count of each [class, cluster], and the class names; empty if the file has none."""

    confusion: Int64[np.ndarray, "C K"]
    class_names: tuple[str, ...]

    @property
    def size(self) -> str:
        """Size as text."""
        return "{} classes and {} clusters".format(*self.confusion.shape)


def read_confusion(path: Path, *, transposed: bool = False) -> Stored:
    """Read a matrix of counts: `.npy`, or CSV in one of two forms.

    A table with the columns actual, predicted, cluster, pixels has one row per class and cluster, as written
    by `confusion_table`. Any other file is the matrix itself, one line per class and one column per cluster;
    a non-numeric first line or first column contains names.

    Raises:
        UserError: the file is missing or not such a matrix.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: not found; give a .csv or .npy file with the pixel count of each class and cluster"
        )
    if path.suffix == ".npy":
        return _turned(Stored(_counts(path, read_array(path)), ()), transposed=transposed)
    lines = _lines(path)
    if set(lines[0]) >= OWN_COLUMNS:
        return _pivot(path, lines)
    return _turned(_matrix(path, lines), transposed=transposed)


def _turned(stored: Stored, *, transposed: bool) -> Stored:
    """Transpose if asked; the names in the first column are then cluster names and are dropped."""
    return Stored(np.ascontiguousarray(stored.confusion.T), ()) if transposed else stored


def _lines(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV table ({error}); use comma-separated counts in UTF-8") from error
    if not lines:
        raise UserError(f"{path}: is empty; expected a line of counts for each class")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(lines[0]):
            raise UserError(
                f"{path}: line {number} has {len(line)} cells, but the first has {len(lines[0])}; "
                "every class needs a count for every cluster, separated by commas"
            )
    return lines


def _matrix(path: Path, lines: list[list[str]]) -> Stored:
    corner, *others = lines[0]
    counted = others if not _is_number(corner) else lines[0]
    if corner and counted == [str(number) for number in range(len(counted))] and len(counted) > 2:
        raise UserError(
            f"{path}: the first line 0, 1, ..., {counted[-1]} looks like column numbers; remove it"
        )
    # A header contains no numbers; a line with some numbers is a faulty line of counts.
    has_header = not corner or not any(map(_is_number, lines[0]))
    body = lines[1:] if has_header else lines
    has_names = not corner or (bool(body) and not _is_number(body[0][0]))
    names = tuple(line[0] for line in body) if has_names else ()
    cells = np.array([line[has_names:] for line in body], dtype=object)
    if cells.ndim != 2 or not cells.size:
        raise UserError(f"{path}: holds no counts; expected a line of counts for each class")
    return Stored(_counts(path, cells), () if all(map(_is_number, names)) else names)


def _pivot(path: Path, lines: list[list[str]]) -> Stored:
    if len(set(lines[0])) < len(lines[0]):
        raise UserError(f"{path}: has duplicate column names: {', '.join(lines[0])}; keep one of each")
    table = pd.DataFrame(lines[1:], columns=lines[0])
    if "cluster" not in table:
        raise UserError(
            f"{path}: has no column 'cluster', which holds the cluster ids; recreate it with "
            "`dvc repro evaluate`"
        )
    if not len(table):
        raise UserError(f"{path}: has no rows; it was written without truth, so there is nothing to score")
    twice = table.duplicated(["actual", "cluster"])
    if twice.any():
        row = table[twice].iloc[0]
        raise UserError(
            f"{path}: has two rows for class {row['actual']!r} and cluster {row['cluster']!r}; each pair "
            "needs exactly one row, and each class a unique name"
        )
    names, clusters = table["actual"].unique(), [str(number) for number in range(table["cluster"].nunique())]
    if set(clusters) != set(table["cluster"]):
        raise UserError(
            f"{path}: column 'cluster' must hold the ids 0 to {len(clusters) - 1}, each once per class"
        )
    if len(table) != len(names) * len(clusters):
        raise UserError(
            f"{path}: has {len(table)} rows, but {len(names)} classes and {len(clusters)} clusters need "
            f"{len(names) * len(clusters)}, one for each pair"
        )
    cells = table.pivot(index="actual", columns="cluster", values="pixels").loc[names, clusters]
    return Stored(_counts(path, cells.to_numpy(object)), tuple(names))


def _counts(path: Path, cells: np.ndarray) -> Int64[np.ndarray, "C K"]:
    """Validate cells (text or numbers) and convert them to counts."""
    if cells.ndim != 2 or not cells.size or max(cells.shape) > MAX_SIDE or cells.dtype.kind not in "iufO":
        raise UserError(
            f"{path}: holds {cells.dtype} {list(cells.shape)}, expected counts [classes, clusters], at most "
            f"{MAX_SIDE} of each"
        )
    values = pd.DataFrame(cells).apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = np.argwhere(~(np.isfinite(values) & (values >= 0) & (values == np.floor(values))))
    if len(wrong):
        row, column = (int(place) for place in wrong[0])
        raise UserError(
            f"{path}: class {row}, cluster {column}: {str(cells[row, column])!r}; {COUNT}"
            + (f"; {len(wrong) - 1} more cells are invalid" if len(wrong) > 1 else "")
        )
    if not 0 < values.sum() < MAX_EXACT:
        raise UserError(
            f"{path}: holds {values.sum():g} pixels; expected at least one and fewer than "
            f"{MAX_EXACT:g}, the limit of exact counting"
        )
    return values.astype(np.int64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


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
    table = read_csv(path)
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
