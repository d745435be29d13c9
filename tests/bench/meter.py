"""Seconds and memory of a piece of real code: `observe`."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from stages.tools.estimate import MOST_STEPS, measure

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Step = Callable[[int], object]


class Observed(NamedTuple):
    """What one piece of code costs.

    Attributes:
        seconds: for one item; the mean of the fastest and the slowest run.
        items: that a run worked on.
        kept_bytes: host memory that stays between runs, such as weights.
        working_bytes: host memory that a run needs besides.
        device_bytes: largest memory of the GPU, 0 on a CPU.
    """

    seconds: float
    items: int
    kept_bytes: float = 0.0
    working_bytes: float = 0.0
    device_bytes: float = 0.0


def observe(
    build: Callable[[], Step], items: int, device: torch.device, *, steps: int = MOST_STEPS
) -> Observed:
    """Time a step and read how much memory it takes.

    Args:
        build: makes what the step needs, such as a network, and returns the step, which takes its number.
        items: that a step works on.
        device: whose memory counts; a GPU's work is waited for.
        steps: to be run at most; the first is not counted if there are more.
    """
    before = _settled()
    before_device = _reset(device)
    step = build()
    span = measure(step, device, steps=steps)
    most, kept = _status("VmHWM"), _settled()
    used = torch.cuda.max_memory_allocated(device) - before_device if device.type == "cuda" else 0
    del step
    return Observed(
        (span.low + span.high) / 2 / items, items, max(0, kept - before), max(0, most - kept), used
    )


def resident_bytes() -> int:
    """Memory of this process as it is, once what is free is given back."""
    return _settled()


def _settled() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc otherwise keeps what was freed; see keep_freed_memory
    return _status("VmRSS")


def _reset(device: torch.device) -> int:
    RESET.write_text("5")  # VmHWM starts anew
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])
