"""Names as people write them: in any Unicode normal form, and not quite like that of the file."""

import difflib
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath


def normal(name: str) -> str:
    """The composed form of a name: file systems of a Mac store accents decomposed."""
    return unicodedata.normalize("NFC", name)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The two names that are most like `name`, and in what they differ, for a message; empty without any."""
    close = difflib.get_close_matches(name, list(candidates), n=2, cutoff=0.6)
    return (
        "; the nearest are " + " and ".join(f"{one} ({_difference(name, one)})" for one in close)
        if close
        else ""
    )


def _difference(name: str, other: str) -> str:
    one, two = PurePosixPath(name), PurePosixPath(other)
    if name.lower() == other.lower():
        return "other upper and lower case"
    if one.name == two.name:
        return "another folder"
    if one.stem == two.stem:
        return "another suffix"
    return "another name"
