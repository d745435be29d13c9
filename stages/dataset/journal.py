"""What of a packing is finished: one line for each image, written as it is done, read after a kill."""

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from stages.core.artefacts import named_faults
from stages.dataset.source import Item, RawFile
from stages.settings.errors import UserError


@dataclass(frozen=True, slots=True)
class Packed:
    """What became of one image.

    Attributes:
        item: which it is.
        width: of the original, px.
        height: likewise.
        files: what was read, the image first.
        crc: CRC-32 of its rows in the arrays.
        faults: why there are no rows; empty where all is well.
    """

    item: Item
    width: int
    height: int
    files: tuple[RawFile, ...]
    crc: int
    faults: tuple[str, ...] = ()


class Journal:
    """Finished images by split and place; a context in which `add` writes.

    Args:
        path: of the file, one JSON list a line; made where there is none.
        splits: the items of each split.
    """

    def __init__(self, path: Path, splits: Sequence[Sequence[Item]]) -> None:
        self._path = path
        self.finished = [_read(path, number, items) for number, items in enumerate(splits)]

    def __enter__(self) -> "Journal":
        self._file = self._path.open("a", encoding="utf-8")
        self._file.write("\n")  # ends a line that a kill cut short
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, split: int, place: int, packed: Packed) -> None:
        """Write one line; images with faults are not finished."""
        if packed.faults or self.finished[split].get(place) == packed:
            return
        files = [[file.name, file.size_bytes, file.sha256, file.modified_ns] for file in packed.files]
        line = json.dumps([split, place, packed.width, packed.height, packed.crc, files])
        self._file.write(f"{line}\n")
        self._file.flush()


def _read(path: Path, split: int, items: Sequence[Item]) -> dict[int, Packed]:
    """The whole lines of one split."""
    finished: dict[int, Packed] = {}
    if not path.exists():
        return finished
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                number, place, width, height, crc, files = json.loads(line)
            except ValueError:  # cut short by a kill
                continue
            if number == split:
                raw = tuple(RawFile(*fields) for fields in files)
                finished[place] = Packed(items[place], width, height, raw, crc)
    return finished


def checksum(*rows: np.ndarray) -> int:
    """CRC-32 of the bytes of all rows, one after the other."""
    value = 0
    for row in rows:
        value = zlib.crc32(np.ascontiguousarray(row).data, value)
    return value


def is_unchanged(root: Path | None, file: RawFile) -> bool:
    """Whether a file has the size and the time of when it was read; made data has no files."""
    if root is None:
        return True
    try:
        status = (root / file.name).stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size_bytes, file.modified_ns)


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
