"""Two kinds of the same work, timed in turns: a machine that slows down slows both."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Comparison(NamedTuple):
    """Medians over the turns."""

    seconds: float  # of the whole
    bare_seconds: float
    goodput: float  # bare by whole, turn by turn: 1 where all time goes into the bare work


def compare(
    whole: Callable[[], object], bare: Callable[[], object], *, turns: int, device: torch.device
) -> Comparison:
    """Time both, one after the other, `turns` times; a first turn warms up and does not count."""
    times = [(_seconds(whole, device), _seconds(bare, device)) for _ in range(turns + 1)][1:]
    return Comparison(
        statistics.median(first for first, _ in times),
        statistics.median(second for _, second in times),
        statistics.median(second / first for first, second in times),
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
