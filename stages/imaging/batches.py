"""Batches of stored images on the compute device."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from stages.core.device import constant, send

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def to_unit(image: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 3 H W"]:
    """Convert channels-last bytes to channels-first RGB in [0, 1]."""
    return image.permute(0, 3, 1, 2).float() / 255


def normalise(image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    """Normalize RGB in [0, 1] by the ImageNet mean and standard deviation; channels-last in memory."""
    mean, std = (constant(one, image.device, image.dtype).view(3, 1, 1) for one in (MEAN, STD))
    return ((image - mean) / std).contiguous(memory_format=torch.channels_last)


DEVICE_SHARE = 0.25  # maximum share of free device memory for stored images
COPIED_IMAGES = 1024  # at once, to the device
LOOK_AHEAD = 2  # number of batches to prefetch


class ImageSource:
    """The decoded images of one split.

    The images are kept on the GPU if they fit. Otherwise a thread reads each batch from the memory map into
    pinned memory. RAM use does not grow with the data set.

    Args:
        array: uint8 [N, S, S, 3], usually a memory map.
        device: target device of the batches.
    """

    def __init__(self, array: np.ndarray, device: torch.device) -> None:
        self.array, self.device = array, device
        self.resident: Tensor | None = None
        if device.type == "cuda" and array.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.resident = torch.empty(array.shape, dtype=torch.uint8, device=device)
            for start in range(0, len(array), COPIED_IMAGES):
                rows = slice(start, start + COPIED_IMAGES)
                self.resident[rows] = torch.from_numpy(np.array(array[rows]))

    def __len__(self) -> int:
        return len(self.array)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[Float[Tensor, "N 3 S S"]]:
        """Yield one batch of RGB in [0, 1] for each tensor of indices, in order."""
        if self.resident is not None:
            for rows in indices:
                yield to_unit(self.resident[send(rows, self.device)])
            return
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for rows in indices:
                waiting.append(reader.submit(self._read, rows))
                if len(waiting) > LOOK_AHEAD:
                    yield self._deliver(waiting.popleft().result())
            while waiting:
                yield self._deliver(waiting.popleft().result())

    def _read(self, rows: Tensor) -> UInt8[Tensor, "N S S 3"]:
        batch = torch.from_numpy(self.array[rows.numpy()])
        return batch.pin_memory() if self.device.type == "cuda" else batch

    def _deliver(self, batch: UInt8[Tensor, "N S S 3"]) -> Float[Tensor, "N 3 S S"]:
        return to_unit(batch.to(self.device, non_blocking=True))


def in_order(count: int, batch_size: int) -> list[Tensor]:
    """All indices once, in order; the last batch may be smaller."""
    return list(torch.arange(count).split(batch_size))


def shuffled(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """All indices in random order, in full batches; the remainder is dropped for this epoch."""
    order = torch.randperm(count, generator=generator)
    return list(order[: count // batch_size * batch_size].split(batch_size))
