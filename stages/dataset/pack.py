"""Packing: every image is decoded once, checked, hashed and written to its place, in parallel."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.core.artefacts import create_array
from stages.dataset.journal import Journal, Packed, checksum, is_unchanged
from stages.dataset.protocols import Protocol, square_image, square_labels
from stages.dataset.source import Decode, Decoded, Item
from stages.dataset.truth import IGNORED
from stages.runtime.pool import call_in_order, count_cores
from stages.settings.errors import UserError

CHUNK_IMAGES = 16


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


@dataclass(frozen=True)
class Job:
    """One split: image i of the arrays is item i."""

    work: Work
    items: Sequence[Item]


@dataclass(frozen=True)
class _Chunk:
    split: int
    start: int
    items: Sequence[Item]
    finished: tuple[Packed | None, ...]  # by an earlier run, for all that is known


def create_arrays(work: Work, num_images: int) -> None:
    """Make the arrays of a job, unless they are there from an earlier run."""
    shape = (num_images, work.side_px, work.side_px)
    for path, whole in ((work.images, (*shape, 3)), (work.labels, shape)):
        if path is not None and not _is_array(path, whole):
            try:
                create_array(path, np.uint8, whole)
            except OSError:  # what has no place on the disk may not look like an array next time
                path.unlink(missing_ok=True)
                raise


def _is_array(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError):  # missing, or cut short by a kill
        return False


def pack(jobs: Sequence[Job], num_workers: int, journal: Journal) -> Iterator[Packed]:
    """Fill the arrays and yield what became of each item, in order, whatever the number of workers.

    Rows that the journal says are finished are kept if they have its checksum, and their files its size
    and time; all others are made.

    Args:
        jobs: their arrays exist already.
        num_workers: processes; 0: one for each CPU core.
        journal: open; of the same splits in the same order.

    Raises:
        UserError: a process died.
    """
    chunks = [
        (
            job.work,
            _Chunk(split, start, job.items[start : start + CHUNK_IMAGES], _finished(journal, split, start)),
        )
        for split, job in enumerate(jobs)
        for start in range(0, len(job.items), CHUNK_IMAGES)
    ]
    workers = min(num_workers or count_cores(), len(chunks))
    for (_, chunk), packed in zip(chunks, call_in_order(_pack_chunk, chunks, workers), strict=True):
        for place, one in enumerate(packed, chunk.start):
            journal.add(chunk.split, place, one)
        yield from packed


def _finished(journal: Journal, split: int, start: int) -> tuple[Packed | None, ...]:
    return tuple(journal.finished[split].get(place) for place in range(start, start + CHUNK_IMAGES))


def _is_valid(finished: Packed, root: Path | None, rows: Sequence[np.ndarray]) -> bool:
    """Whether what an earlier run packed is still what the files say, and what it wrote."""
    return all(is_unchanged(root, file) for file in finished.files) and checksum(*rows) == finished.crc


def _pack_chunk(work: Work, chunk: _Chunk) -> list[Packed]:
    images = np.load(work.images, mmap_mode="r+")
    labels = None if work.labels is None else np.load(work.labels, mmap_mode="r+")
    packed = []
    for item, finished, index in zip(chunk.items, chunk.finished, itertools.count(chunk.start), strict=False):
        rows = [images[index]] if labels is None else [images[index], labels[index]]
        if finished and _is_valid(finished, work.root, rows):
            packed.append(finished)
            continue
        try:
            decoded = work.decode(item)
            rows[0][:] = _square(item, decoded, work)
            if labels is not None:
                labels[index] = _square_labels(item, decoded, work)
            packed.append(Packed(item, *decoded.image.size, decoded.files, checksum(*rows)))
        except UserError as error:
            packed.append(Packed(item, 0, 0, (), 0, error.faults))
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
