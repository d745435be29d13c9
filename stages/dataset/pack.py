"""Packing: decodes, checks and hashes every image once and writes it to its row, in parallel.

The result for each image is a row of `RECORD` next to the arrays, so that an interrupted run can resume.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.dataset.protocols import Protocol, square_image, square_labels
from stages.dataset.source import Decode, Decoded, Item, RawFile, Remark, is_unchanged
from stages.dataset.truth import IGNORED
from stages.runtime.pool import call_in_order, count_cores
from stages.settings.errors import DamagedFileError, UserError

CHUNK_IMAGES = 16
TRAIN, VAL, MAPS = "train.npy", "val.npy", "maps.npy"  # arrays in the state folder
# Size of the original in px, then file info of the image and its label map. Zeros: not packed yet.
RECORD = np.dtype(
    [
        ("width", "i4"),
        ("height", "i4"),
        ("bytes", "i8", 2),
        ("sha256", "S64", 2),
        ("modified_ns", "i8", 2),
        ("remarks", "u1"),
    ]
)


@dataclass(frozen=True, slots=True)
class Packed:
    """Result of packing one image.

    Attributes:
        item: the packed item.
        width: width of the original, px.
        height: height of the original, px.
        files: files that were read, the image first.
        faults: reasons why packing failed; empty on success.
        is_damaged: a file cannot be read or decoded, and nothing else is wrong.
        remarks: what was seen in the files.
    """

    item: Item
    width: int
    height: int
    files: tuple[RawFile, ...]
    faults: tuple[str, ...] = ()
    is_damaged: bool = False
    remarks: Remark = Remark.NONE


@dataclass(frozen=True)
class Work:
    """Settings for packing one split; small, because it is sent to the workers with every chunk.

    Attributes:
        decode: reads one item of the data set.
        root: folder of the files; None for generated data.
        images: .npy, uint8 [N, side_px, side_px, 3].
        labels: .npy, uint8 [N, side_px, side_px]; None for a split without label maps.
        side_px: side of the packed squares.
        protocol: resize and crop protocol.
    """

    decode: Decode
    root: Path | None
    images: Path
    labels: Path | None
    side_px: int
    protocol: Protocol

    @property
    def shapes(self) -> dict[Path, tuple[int, ...]]:
        """Shape of one row of each array."""
        square = (self.side_px, self.side_px)
        return {self.images: (*square, 3), **({self.labels: square} if self.labels else {})}


@dataclass(frozen=True)
class Job:
    """One split: row i of the arrays and of `finished` (results of an earlier run) belongs to item i."""

    work: Work
    items: Sequence[Item]
    finished: np.memmap  # of RECORD


@dataclass(frozen=True)
class _Chunk:
    start: int
    items: Sequence[Item]
    finished: np.ndarray


def pack(jobs: Sequence[Job], num_workers: int) -> Iterator[Packed]:
    """Fill the arrays and yield the result for each item, in order.

    Finished rows are kept if size and modification time of their files are unchanged.

    Args:
        jobs: splits to pack, with preallocated arrays.
        num_workers: number of processes; 0: one per CPU core.

    Raises:
        UserError: a worker process was killed.
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
    """Convert a packing result to a row of `RECORD`; zeros if there are faults."""
    row = np.zeros((), RECORD)
    if not packed.faults:
        row["width"], row["height"], row["remarks"] = packed.width, packed.height, packed.remarks
        for place, file in enumerate(packed.files):
            row["bytes"][place], row["sha256"][place] = file.size_bytes, file.sha256
            row["modified_ns"][place] = file.modified_ns
    return row


def _from_record(item: Item, row: np.void) -> Packed:
    names = [name for name in (item.source, item.labels) if name is not None]
    values = zip(names, row["bytes"], row["sha256"], row["modified_ns"], strict=False)
    files = tuple(RawFile(name, int(size), sha.decode(), int(time)) for name, size, sha, time in values)
    remarks = Remark(int(row["remarks"]))
    return Packed(item, int(row["width"]), int(row["height"]), files, remarks=remarks)


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
            remarks = decoded.remarks | (Remark.CONSTANT if _is_constant(images[index]) else Remark.NONE)
            packed.append(Packed(item, *decoded.image.size, decoded.files, remarks=remarks))
        except UserError as error:
            damaged = isinstance(error, DamagedFileError)
            files = error.files if isinstance(error, DamagedFileError) else ()
            packed.append(Packed(item, 0, 0, files, error.faults, is_damaged=damaged))
    return packed


def _is_constant(pixels: np.ndarray) -> bool:
    """Whether all pixels are equal; a coarse grid answers for almost all images."""
    first = pixels[:1, :1]
    return bool((pixels[::16, ::16] == first).all() and (pixels == first).all())


def _square(item: Item, decoded: Decoded, work: Work) -> np.ndarray:
    try:
        return square_image(decoded.image, work.side_px, work.protocol, item.tile)
    except DamagedFileError as error:
        raise DamagedFileError(f"{item.source}: {error}", files=decoded.files) from error
    except UserError as error:
        raise UserError(f"{item.source}: {error}") from error


def _square_labels(item: Item, decoded: Decoded, work: Work) -> np.ndarray | int:
    if decoded.labels is None:
        return IGNORED
    return square_labels(decoded.labels, work.side_px, work.protocol, item.tile)
