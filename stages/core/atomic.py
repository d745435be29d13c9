"""Files and folders that are written completely or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.settings.errors import UserError
from stages.settings.write_faults import write_fault

LONGEST_NAME, ADDED = 255, 10  # bytes that a file system allows, and that `_hidden` and tempfile add


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` if the block succeeds and is deleted otherwise.

    Raises:
        UserError: the disk is full or gone, or write permission is missing.
    """
    with named_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_hidden(path.name), dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _synchronise(temporary)
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Folder version of `atomic_path`: the new folder replaces the old one completely or not at all.

    If `path` is a link, it stays, and the folder that it leads to is replaced.

    Raises:
        UserError: as of `atomic_path`.
    """
    path = path.resolve()
    with named_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_hidden(path.name), dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            for file in temporary.iterdir():
                _synchronise(file)
            _put(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _put(folder: Path, place: Path) -> None:
    """Move a folder to its place, and only then delete the folder that was there."""
    if not place.is_dir():
        os.replace(folder, place)
        return
    aside = Path(tempfile.mkdtemp(prefix=_hidden(place.name), dir=place.parent))
    try:
        os.replace(place, aside)
        os.replace(folder, place)
    except BaseException:
        if not place.exists():  # `aside` has the old folder, and keeps it if even this fails
            os.replace(aside, place)
        else:
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _hidden(name: str) -> str:
    """How the name of a temporary file begins: with the name that it will have, cut off if that is long."""
    whole, room = os.fsencode(name), LONGEST_NAME - ADDED
    if len(whole) > room:
        name = whole[:room].decode(errors="ignore")
    return f".{name}."


@contextmanager
def named_faults(path: Path) -> Iterator[None]:
    """Turn a full or lost disk, missing write permission or what is in the way of `path` into a `UserError`.

    Raises:
        UserError: one of these; all other errors propagate.
    """
    try:
        yield
    except OSError as error:
        if (fault := write_fault(path, error)) is None:
            raise
        raise UserError(fault) from error


def _synchronise(path: Path) -> None:
    """Flush to disk, so that a power loss after the rename cannot leave an empty file."""
    with path.open("rb+") as written:
        os.fsync(written.fileno())
