"""Packing: every image is decoded once, checked, hashed and written to its place, in parallel."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from stages.dataset.source import Decode, Decoded, Item, RawFile
from stages.dataset.truth import IGNORED
from stages.dataset.working_size import square_image, square_labels
from stages.runtime.cores import count_cores
from stages.runtime.errors import UserError

CHUNK_IMAGES = 16
CHUNKS_AHEAD = 4  # for each worker: enough to keep it busy, few enough to keep memory flat


@dataclass(frozen=True)
class Work:
    """How images become rows of arrays; small, because it travels with every chunk.

    Attributes:
        decode: reads one item of the data set.
        images: .npy, uint8 [N, side_px, side_px, 3].
        labels: .npy, uint8 [N, side_px, side_px]; None for a split without label maps.
        side_px: of the squares.
    """

    decode: Decode
    images: Path
    labels: Path | None
    side_px: int


@dataclass(frozen=True)
class Job:
    """One split: image i of the arrays is item i."""

    work: Work
    items: Sequence[Item]


@dataclass(frozen=True)
class Packed:
    """What became of one image: its size and files, or its faults."""

    item: Item
    width: int
    height: int
    files: tuple[RawFile, ...]
    faults: tuple[str, ...] = ()


def create_arrays(work: Work, num_images: int) -> None:
    """Make the arrays of a job: black images, ignored labels."""
    shape = (num_images, work.side_px, work.side_px)
    np.lib.format.open_memmap(work.images, mode="w+", dtype=np.uint8, shape=(*shape, 3)).flush()
    if work.labels is not None:
        labels = np.lib.format.open_memmap(work.labels, mode="w+", dtype=np.uint8, shape=shape)
        for row in labels:
            row[:] = IGNORED
        labels.flush()


def pack(jobs: Sequence[Job], num_workers: int) -> Iterator[Packed]:
    """Fill the arrays and yield what became of each item, in order, whatever the number of workers.

    Args:
        jobs: their arrays exist already.
        num_workers: processes; 0: one for each CPU core.

    Raises:
        UserError: a process died.
    """
    chunks = [
        (job, range(start, min(start + CHUNK_IMAGES, len(job.items))))
        for job in jobs
        for start in range(0, len(job.items), CHUNK_IMAGES)
    ]
    workers = min(num_workers or count_cores(), len(chunks))
    if workers <= 1:
        for job, rows in chunks:
            yield from _pack_chunk(job.work, rows, job.items[rows.start : rows.stop])
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            pending: deque[Future[list[Packed]]] = deque()
            for job, rows in chunks:
                pending.append(pool.submit(_pack_chunk, job.work, rows, job.items[rows.start : rows.stop]))
                if len(pending) >= CHUNKS_AHEAD * workers:
                    yield from pending.popleft().result()
            yield from itertools.chain.from_iterable(future.result() for future in pending)
        except BrokenProcessPool as error:
            raise UserError(
                "runtime.num_workers: a decoding process was killed, most likely for want of memory; "
                "set a smaller number"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _pack_chunk(work: Work, rows: range, items: Sequence[Item]) -> list[Packed]:
    images = np.load(work.images, mmap_mode="r+")
    labels = None if work.labels is None else np.load(work.labels, mmap_mode="r+")
    packed = []
    for index, item in zip(rows, items, strict=True):
        try:
            decoded = work.decode(item)
            images[index] = _square(item, decoded, work.side_px)
            if labels is not None and decoded.labels is not None:
                labels[index] = square_labels(decoded.labels, work.side_px)
            packed.append(Packed(item, *decoded.image.size, decoded.files))
        except UserError as error:
            packed.append(Packed(item, 0, 0, (), error.faults))
    return packed


def _square(item: Item, decoded: Decoded, side_px: int) -> np.ndarray:
    try:
        return square_image(decoded.image, side_px)
    except UserError as error:
        raise UserError(f"{item.source}: {error}") from error
