"""Files that stages hand to each other: written atomically and deterministically, read with checks."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike

from stages.core.atomic import atomic_path
from stages.settings.errors import UserError

DETAILS = "details"  # key in a metrics file for all figures outside the headline
MAKE_AGAIN = "delete it and run `dvc repro` to make it again"  # remedy for a file of a stage


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; six significant digits, and no NaN, so that git and DVC can compare files."""
    write_text(path, json.dumps(_rounded(content), indent=2, allow_nan=False) + "\n")


def write_metrics(
    path: Path,
    metrics: Mapping[str, Mapping[str, Any]],
    headline: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write figures grouped by name; `read_metrics` reads them back.

    DVC shows each number of a metrics file in its own column and ignores lists. To keep its tables readable,
    only the headline figures are plain numbers; all others are in the list `details`.

    Args:
        path: output file.
        metrics: figures by name.
        headline: keys of the headline figures for each name; none by default.
    """
    content = {}
    for name, figures in metrics.items():
        shown = {key: figures[key] for key in (headline or {}).get(name, ())}
        content[name] = {**shown, DETAILS: [{key: figures[key] for key in figures if key not in shown}]}
    write_json(path, content)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index; six significant digits."""
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one array as .npy; reserves disk space first, because `np.save` does not report a full disk."""
    with atomic_path(path) as temporary:
        stored = create_array(temporary, array.dtype, array.shape)
        stored[...] = array
        stored.flush()


def create_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Create a .npy array of zeros, and open it for writing as a memory map.

    Reserves the disk space: writing to a memory map on a full disk would kill the process with a signal.

    Raises:
        OSError: the disk is full or permission is missing.
    """
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    with path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return np.lib.format.open_memmap(path, mode="r+")


def read_array(path: Path, *, memory_map: bool = False) -> np.ndarray:
    """Read one .npy array; with `memory_map` the data stays on disk.

    Raises:
        UserError: the file is missing, truncated or not an array.
    """
    try:
        # Always map first: this detects a header that claims more data than the file has, without allocating.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged headers raise many types of errors
        raise UserError(unreadable(path, "a .npy array", error)) from error
    return array if memory_map else np.array(array)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(unreadable(path, "JSON", error)) from error


def read_metrics(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file of `write_metrics`: all figures by name, including the headline.

    Raises:
        UserError: the file is missing or not a metrics file.
    """
    try:
        return {name: with_details(figures) for name, figures in read_json(path).items()}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(unreadable(path, "a metrics file of this version", error)) from error


def with_details(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Merge headline and details of one entry of a metrics file."""
    headline = {key: value for key, value in figures.items() if key != DETAILS}
    return {**headline, **figures[DETAILS][0]}


def read_csv(path: Path, text: Sequence[str] = (), *, damaged: str = MAKE_AGAIN) -> pd.DataFrame:
    """Read a table; empty cells become empty strings, and the columns `text` stay text (a class can be 01).

    Raises:
        UserError: the file is missing or not CSV; `damaged` is the remedy for the latter.
    """
    try:
        return pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(text, str))
    except (OSError, ValueError) as error:
        raise UserError(unreadable(path, "a CSV table", error, damaged=damaged)) from error


def unreadable(
    path: Path,
    expected: str,
    error: Exception,
    *,
    absent: str = "run `dvc repro` to make it",
    damaged: str = MAKE_AGAIN,
) -> str:
    """Error message for an unusable file, with the remedy.

    Args:
        path: the file.
        expected: what it should be.
        error: what happened when it was read.
        absent: remedy if it is not there.
        damaged: remedy if it is something else.
    """
    if isinstance(error, FileNotFoundError):
        return f"{path}: not found; {absent}"
    if isinstance(error, PermissionError):
        return f"{path}: cannot be read ({error.strerror}); allow this user to read it"
    return f"{path}: not {expected} ({error}); {damaged}"
