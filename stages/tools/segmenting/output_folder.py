"""The output folder of a run: no other run writes there meanwhile, and files get there when whole."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from stages.core.atomic import named_faults
from stages.runtime.locks import try_lock
from stages.settings.errors import UserError

LOCK = ".segment.lock"  # in the output folder during a run; after a kill it locks nothing
STAGING = ".segment."  # begins the name of a folder of unfinished files
UNFINISHED = re.compile(r"\.segment(\.json)?\.[a-z0-9_]{8}")  # such a folder, or an unfinished segment.json


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Make the output folder, and keep other runs out of it until the block ends.

    What runs that were killed have left unfinished is removed.

    Args:
        out: output folder.

    Raises:
        UserError: another run writes there.
    """
    path = out / LOCK
    with named_faults(path):
        out.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    with lock:
        try:
            with named_faults(out):
                _remove_unfinished(out)
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> TextIO:
    """Lock a file; it is made again if a run that ends has removed it between opening and locking.

    Raises:
        UserError: as of `alone_in`.
    """
    while True:
        lock = path.open("a", encoding="utf-8")
        if not try_lock(lock, "segment"):
            lock.close()
            raise UserError(
                f"{path.parent}: another run of segment writes there (lock: {path}); wait for it to end, or "
                "choose another folder with --out"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samefile(path, lock.fileno()):
                return lock
        lock.close()


def _remove_unfinished(out: Path) -> None:
    for path in [path for path in out.iterdir() if UNFINISHED.fullmatch(path.name)]:
        if path.is_symlink():  # segment has made none
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A hidden folder on the disk of the output folder, for files that are not yet finished."""
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=out) as folder:
        yield Path(folder)
