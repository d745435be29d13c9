"""Packing: every image is decoded once, checked, hashed and written to its place, in parallel.

What became of each image is a row of `RECORD` beside the arrays, so that a run that was killed goes on.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.dataset.protocols import Protocol, square_image, square_labels
from stages.dataset.source import Decode, Decoded, Item, RawFile, is_unchanged
from stages.dataset.truth import IGNORED
from stages.runtime.pool import call_in_order, count_cores
from stages.settings.errors import UserError

CHUNK_IMAGES = 16
# Of the original, px; then of the image's file and of its label map's. Zeros: not packed yet.
RECORD = np.dtype(
    [("width", "i4"), ("height", "i4"), ("bytes", "i8", 2), ("sha256", "S64", 2), ("modified_ns", "i8", 2)]
)


@dataclass(frozen=True, slots=True)
class Packed:
    """What became of one image.

    Attributes:
        item: which it is.
        width: of the original, px.
        height: likewise.
        files: what was read, the image first.
        faults: why there are no rows; empty where all is well.
    """

    item: Item
    width: int
    height: int
    files: tuple[RawFile, ...]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """How images become rows of arrays; small, because it travels with every chunk.

    Attributes:
        decode: reads one item of the data set.
        root: of its files; None where there are none.
        images: .npy, uint8 [N, side_px, side_px, 3].
        labels: .npy, uint8 [N, side_px, side_px]; None for a split without label maps.
        side_px: of the squares.
        protocol: how pictures become squares.
    """

    decode: Decode
    root: Path | None
    images: Path
    labels: Path | None
    side_px: int
    protocol: Protocol

    @property
    def shapes(self) -> dict[Path, tuple[int, ...]]:
        """The arrays, and the shape of a row of each."""
        square = (self.side_px, self.side_px)
        return {self.images: (*square, 3), **({self.labels: square} if self.labels else {})}


@dataclass(frozen=True)
class Job:
    """One split: image i of the arrays is item i, and row i of `finished` what an earlier run made of it."""

    work: Work
    items: Sequence[Item]
    finished: np.memmap  # of RECORD


@dataclass(frozen=True)
class _Chunk:
    start: int
    items: Sequence[Item]
    finished: np.ndarray


def pack(jobs: Sequence[Job], num_workers: int) -> Iterator[Packed]:
    """Fill the arrays and yield what became of each item, in order, whatever the number of workers.

    Rows that are finished are kept if their files still have the size and the time of then.

    Args:
        jobs: their arrays exist already.
        num_workers: processes; 0: one for each CPU core.

    Raises:
        UserError: a process died.
    """
    chunks = [
        (job.work, _Chunk(start, job.items[start:stop], np.array(job.finished[start:stop])))
        for job in jobs
        for start, stop in itertools.pairwise([*range(0, len(job.items), CHUNK_IMAGES), len(job.items)])
    ]
    workers = min(num_workers or count_cores(), len(chunks))
    for packed in call_in_order(_pack_chunk, chunks, workers):
        yield from packed


def record(packed: Packed) -> np.ndarray:
    """What became of an image as a row of `RECORD`; zeros where there are faults."""
    row = np.zeros((), RECORD)
    if not packed.faults:
        row["width"], row["height"] = packed.width, packed.height
        for place, file in enumerate(packed.files):
            row["bytes"][place], row["sha256"][place] = file.size_bytes, file.sha256
            row["modified_ns"][place] = file.modified_ns
    return row


def _from_record(item: Item, row: np.void) -> Packed:
    names = [name for name in (item.source, item.labels) if name is not None]
    values = zip(names, row["bytes"], row["sha256"], row["modified_ns"], strict=False)
    files = tuple(RawFile(name, int(size), sha.decode(), int(time)) for name, size, sha, time in values)
    return Packed(item, int(row["width"]), int(row["height"]), files)


def _pack_chunk(work: Work, chunk: _Chunk) -> list[Packed]:
    images = np.load(work.images, mmap_mode="r+")
    labels = None if work.labels is None else np.load(work.labels, mmap_mode="r+")
    packed = []
    for index, (item, row) in enumerate(zip(chunk.items, chunk.finished, strict=True), chunk.start):
        if row["width"]:
            finished = _from_record(item, row)
            if all(is_unchanged(work.root, file) for file in finished.files):
                packed.append(finished)
                continue
        try:
            decoded = work.decode(item)
            images[index] = _square(item, decoded, work)
            if labels is not None:
                labels[index] = _square_labels(item, decoded, work)
            packed.append(Packed(item, *decoded.image.size, decoded.files))
        except UserError as error:
            packed.append(Packed(item, 0, 0, (), error.faults))
    return packed


def _square(item: Item, decoded: Decoded, work: Work) -> np.ndarray:
    try:
        return square_image(decoded.image, work.side_px, work.protocol, item.tile)
    except UserError as error:
        raise UserError(f"{item.source}: {error}") from error


def _square_labels(item: Item, decoded: Decoded, work: Work) -> np.ndarray | int:
    if decoded.labels is None:
        return IGNORED
    return square_labels(decoded.labels, work.side_px, work.protocol, item.tile)
