"""User errors, which are reported without a traceback."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MOST_LINES = 20  # of one message
MOST_ALIKE = 3  # files with one and the same fault that are all named


class UserError(Exception):
    """One or more faults of the input; each is a line with key or path, value, rule and remedy."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class DamagedFileError(UserError):
    """A file that cannot be read or decoded: it may be left out where others can do without it.

    Args:
        faults: as of any user error.
        files: what was read of the item before the fault, for the manifest.
    """

    def __init__(self, *faults: str, files: tuple[Any, ...] = ()) -> None:
        super().__init__(*faults)
        self.files = files


def no_folder(path: Path) -> str:
    """What is wrong with a path that is no folder, for a message."""
    return "is a file" if path.exists() else "no such folder"


def listed(names: Sequence[str], most: int = 10) -> str:
    """Join the first names of a list for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def grouped(faults: Sequence[str]) -> tuple[str, ...]:
    """Faults of files as lines; many files with one fault become one line with examples and their number.

    A fault of a file is written `name: what is wrong`.
    """
    names: dict[str, list[str]] = {}
    for fault in faults:
        name, what = _parts(fault)
        names.setdefault(what, []).append(name)
    lines, done = [], set()
    for fault in faults:
        _, what = _parts(fault)
        alike = names[what]
        if len(alike) <= MOST_ALIKE:
            lines.append(fault)
        elif what not in done:
            done.add(what)
            lines.append(f"{', '.join(alike[:MOST_ALIKE])}, ... ({len(alike):,} files): {what}")
    return tuple(lines)


def _parts(fault: str) -> tuple[str, str]:
    name, sign, what = fault.partition(": ")
    return (name, what) if sign else ("", fault)


def raise_faults(faults: Iterable[str]) -> None:
    """Raise all faults as one error, so that one run reports everything to fix.

    Raises:
        UserError: there is at least one fault.
    """
    lines = grouped(tuple(faults))
    if len(lines) > MOST_LINES:
        rest = f"... and {len(lines) - MOST_LINES} more faults ({len(lines)} in total)"
        lines = (*lines[:MOST_LINES], rest)
    if lines:
        raise UserError(*lines)
