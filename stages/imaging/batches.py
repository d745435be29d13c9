"""Batches of stored images on the compute device."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from stages.core.transfer import constant, send
from stages.imaging.stored_rows import ReadRow, open_rows

Item = TypeVar("Item")

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def to_unit(image: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 3 H W"]:
    """Convert channels-last bytes to channels-first RGB in [0, 1]."""
    return image.permute(0, 3, 1, 2).float().div_(255)  # in place: a batch may be large


def normalise(image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    """Normalize RGB in [0, 1] by the ImageNet mean and standard deviation; channels-last in memory."""
    mean, std = (constant(one, image.device, image.dtype).view(3, 1, 1) for one in (MEAN, STD))
    return ((image - mean) / std).contiguous(memory_format=torch.channels_last)


DEVICE_SHARE = 0.25  # maximum share of free device memory for stored images
COPIED_IMAGES = 64  # at once, to the device
LOOK_AHEAD = 2  # number of batches to prefetch
READERS = 8  # threads: a disk serves several requests at once, and each thread waits for one


class ImageSource:
    """The decoded images of one split.

    The images are kept on the GPU if they fit. Otherwise threads read each image of a batch from the file of
    the memory map, for a GPU into pinned memory. RAM use does not grow with the data set.

    Args:
        array: uint8 [N, S, S, 3], usually a memory map.
        device: target device of the batches.

    Raises:
        UserError: the file cannot be read, or is cut short; also from `batches` and `read`.
    """

    def __init__(self, array: np.ndarray, device: torch.device) -> None:
        self.array, self.device = array, device
        self.resident: Tensor | None = None
        if device.type == "cuda" and array.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            resident = torch.empty(array.shape, dtype=torch.uint8, device=device)
            stored = self.read(in_order(len(array), COPIED_IMAGES), pinned=False)
            for part, batch in zip(resident.split(COPIED_IMAGES), stored, strict=True):
                part.copy_(batch)
            self.resident = resident

    def __len__(self) -> int:
        return len(self.array)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[Float[Tensor, "N 3 S S"]]:
        """Yield one batch of RGB in [0, 1] for each tensor of indices, in order."""
        if self.resident is not None:
            for rows in indices:
                yield to_unit(self.resident[send(rows, self.device)])
            return
        for batch in self.read(indices, pinned=self.device.type == "cuda"):
            yield to_unit(batch.to(self.device, non_blocking=True))

    def read(self, indices: Iterable[Tensor], *, pinned: bool) -> Iterator[UInt8[Tensor, "N S S 3"]]:
        """Yield one batch of stored images on the CPU for each tensor of indices, in order.

        While a batch is in use, the next ones are read. A batch that is not pinned is overwritten once the
        next is asked for.
        """
        spare: list[Tensor] = []
        with open_rows(self.array) as read_row, ThreadPoolExecutor(READERS) as readers:

            def start(rows: Tensor) -> tuple[Tensor, list[Future[None]]]:
                batch = self._buffer(len(rows), spare, pinned=pinned)
                pairs = list(zip(rows.tolist(), batch.numpy(), strict=True))
                parts = (pairs[first::READERS] for first in range(min(READERS, len(pairs))))
                return batch, [readers.submit(_read_part, read_row, part) for part in parts]

            for batch, parts in _ahead(map(start, indices)):
                for part in parts:
                    part.result()
                yield batch
                if not pinned:  # torch keeps pinned memory until its copy is made, and gives it out again
                    spare.append(batch)

    def _buffer(self, count: int, spare: list[Tensor], *, pinned: bool) -> UInt8[Tensor, "N S S 3"]:
        """Memory for a batch: a spare one, or new, apart from that of the steps."""
        if spare and len(found := spare.pop()) >= count:
            return found[:count]
        shape = (count, *self.array.shape[1:])
        if pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        pages = mmap(-1, max(1, math.prod(shape)), flags=MAP_PRIVATE | MAP_ANONYMOUS)
        return torch.from_numpy(np.frombuffer(pages, np.uint8, math.prod(shape)).reshape(shape))


def _read_part(read_row: ReadRow, part: Iterable[tuple[int, np.ndarray]]) -> None:
    for row, image in part:
        read_row(row, image)


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; each is given out once the next ones are made."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > LOOK_AHEAD:
            yield waiting.popleft()
    yield from waiting


def in_order(count: int, batch_size: int) -> list[Tensor]:
    """All indices once, in order; the last batch may be smaller."""
    return list(torch.arange(count).split(batch_size))


def shuffled(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """All indices in random order, in full batches; the remainder is dropped for this epoch."""
    order = torch.randperm(count, generator=generator)
    return list(order[: count // batch_size * batch_size].split(batch_size))
