"""Reads a stored matrix of pixel counts, from `.npy` or CSV in any of its forms."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int64

from stages.core.artefacts import read_array
from stages.settings.errors import UserError

MAX_SIDE = 1024  # maximum number of classes or clusters
MAX_EXACT = 2**53  # scipy matches in float64, which is exact for integers up to here
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
        if transposed:
            raise UserError(
                f"{path}: says of which class and cluster each count is, so it cannot be turned; leave out "
                "--transposed"
            )
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
    _refuse_column_numbers(path, corner, others)
    # A header contains no numbers; a line with some numbers is a faulty line of counts.
    has_header = not corner or not any(map(_is_number, lines[0]))
    body = lines[1:] if has_header else lines
    has_names = not corner or (bool(body) and not _is_number(body[0][0]))
    names = tuple(line[0] for line in body) if has_names else ()
    cells = np.array([line[has_names:] for line in body], dtype=object)
    if cells.ndim != 2 or not cells.size:
        raise UserError(f"{path}: holds no counts; expected a line of counts for each class")
    return Stored(_counts(path, cells), () if all(map(_is_number, names)) else names)


def _refuse_column_numbers(path: Path, corner: str, others: list[str]) -> None:
    """Refuse a first line that is a header of numbers, which would count as a class.

    After a word, numbers from 0 or 1 on are taken for a header; without one only 0, 1, 2 and so on, because
    small counts from 1 on are as likely. An empty corner leaves no doubt: it is a header.

    Raises:
        UserError: it looks like one.
    """
    is_named = not _is_number(corner)
    cells = others if is_named else [corner, *others]
    if not corner or not all(map(_is_number, cells)):
        return
    numbers = [float(cell) for cell in cells]
    fewest, starts = (2, (0, 1)) if is_named else (3, (0,))
    if len(numbers) >= fewest and any(
        numbers == list(range(start, start + len(numbers))) for start in starts
    ):
        way = ", or empty its first cell; if it is a class, put a line of names before it" if is_named else ""
        raise UserError(
            f"{path}: the first line looks like column numbers ({numbers[0]:g} to {numbers[-1]:g}); "
            f"remove it{way}"
        )


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
