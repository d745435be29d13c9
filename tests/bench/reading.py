"""How fast stored images are read: where memory holds their file, and where the disk alone has it."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from stages.core.artefacts import read_array, write_array
from stages.core.device import torch_generator
from stages.imaging.batches import ImageSource, shuffled
from tests.bench.lines import Line

CPU = torch.device("cpu")
NUM_IMAGES, SIDE, BATCH = 256, 640, 64  # 315 MB
DIFFERENT = 8  # images; the others repeat them


def measure(device: torch.device, turns: int, *, compiled: bool = False) -> Iterator[Line]:
    """Images per second in random order, as the training stages read them, without any other work."""
    spent = []
    with stored_images(NUM_IMAGES, SIDE) as path:
        images = ImageSource(read_array(path, memory_map=True), CPU)
        for turn in range(turns + 1):  # the first warms up
            order = shuffled(NUM_IMAGES, BATCH, torch_generator(turn, "bench"))
            forget(path)
            spent.append([_seconds(images, order, pinned=device.type == "cuda") for _ in range(2)])
    from_disk, from_memory = NUM_IMAGES / np.median(spent[1:], axis=0)
    yield Line(
        f"reading images of {SIDE} px in random order, batch {BATCH}, from the disk of data/",
        f"{from_disk:.1f} images/s",
        f"from memory {from_memory:.1f} images/s",
        from_disk / from_memory,
    )


def _seconds(images: ImageSource, order: Sequence[torch.Tensor], *, pinned: bool) -> float:
    start = time.perf_counter()
    for _ in images.read(order, pinned=pinned):
        pass
    return time.perf_counter() - start


@contextlib.contextmanager
def stored_images(count: int, side: int) -> Iterator[Path]:
    """A file of random images on the disk of `data`, as long as the context lasts."""
    Path("data").mkdir(exist_ok=True)
    different = np.random.default_rng(0).integers(0, 256, (DIFFERENT, side, side, 3), np.uint8)
    with tempfile.TemporaryDirectory(prefix=".bench.", dir="data") as folder:
        path = Path(folder) / "images.npy"
        write_array(path, np.resize(different, (count, side, side, 3)))
        yield path


def forget(path: Path) -> None:
    """Ask the system to drop a file from memory, so that the disk reads it again."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
