"""Which bytes a file has: its SHA-256, in full or as a short name."""

import hashlib
from pathlib import Path

from stages.settings.errors import UserError

FINGERPRINT_DIGITS = 12


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, pinned: str, key: str, remedy: str) -> str:
    """The SHA-256 of a file that a setting names; must equal `pinned` unless that is empty.

    Args:
        path: of the file.
        pinned: value of the setting `<key>_sha256`.
        key: dotted key of the setting that names the file.
        remedy: what to do if the file is missing or cannot be read.

    Raises:
        UserError: the file is missing, unreadable, or has another hash.
    """
    try:
        found = file_sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    if pinned and found != pinned:
        raise UserError(
            f"{key}_sha256: is {pinned}, but {path} has the SHA-256 {found}; the file differs or is "
            f"truncated; get the pinned file, or set {key.rpartition('.')[2]}_sha256 to this hash"
        )
    return found


def fingerprint(centroids: Path) -> str:
    """Short name of the clusters in a file of `cluster`: the start of its SHA-256."""
    return file_sha256(centroids)[:FINGERPRINT_DIGITS]
