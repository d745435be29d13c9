"""What of a packing is finished: one line for each image, written as it is done, read after a kill."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from stages.dataset.source import Item, RawFile


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
