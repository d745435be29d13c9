"""Outputs on their way: in a folder beside their place, which waits there for the next run after a kill."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from stages.dataset.source import Item
from stages.runtime.artefacts import named_faults
from stages.runtime.errors import UserError

CODE = Path(__file__).parent
MARK = ".made_by"  # holds the fingerprint of all that decides what is in the folder


def fingerprint(settings: Mapping[str, Any], splits: Sequence[Sequence[Item]]) -> str:
    """Of the settings, of the images by name, and of the code of this room."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted((*CODE.rglob("*.py"), *CODE.rglob("*.csv"))):
        digest.update(path.read_bytes())
    for items in splits:
        digest.update(repr(len(items)).encode())
        for item in items:
            digest.update(json.dumps(astuple(item)).encode())
    return digest.hexdigest()


def staged_path(path: Path) -> Path:
    """Where the output `path` waits until it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def staged_folder(path: Path, made_by: str) -> Iterator[Path]:
    """A folder that takes the name `path` when the block succeeds, and is kept as it is when not.

    Hidden files in it serve the work alone and are left out.

    Args:
        path: of the output; the new one replaces the old one whole.
        made_by: the fingerprint; what another one left is thrown away.

    Raises:
        UserError: another process is at work on the same, the disk is full, or does not let us write.
    """
    with named_faults(path):
        staged = staged_path(path)
        staged.mkdir(parents=True, exist_ok=True)
        lock = os.open(staged, os.O_RDONLY)
        try:
            _lock(lock, staged)
            mark = staged / MARK
            if not mark.exists() or mark.read_text() != made_by:
                for left in staged.iterdir():
                    left.unlink()
                mark.write_text(made_by)
            yield staged
            for file in staged.iterdir():
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
            for hidden in staged.glob(".*"):
                hidden.unlink()
            if path.exists():
                shutil.rmtree(path)
            os.replace(staged, path)
        finally:
            os.close(lock)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{folder}: another process is at work on it; wait for it to end, or end it, and run again"
        ) from error
