"""Two kinds of the same work, timed in turns: a machine that slows down slows both."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from stages.core.graph import WARM_UP


class Comparison(NamedTuple):
    """Medians over the turns."""

    seconds: float  # of the whole
    bare_seconds: float
    goodput: float  # bare by whole, turn by turn: 1 where all time goes into the bare work


def compare(
    whole: Callable[[], object], bare: Callable[[], object], *, turns: int, device: torch.device
) -> Comparison:
    """Time both, one after the other, `turns` times, after turns that warm up and do not count.

    On a GPU these are as many as a kind of step needs that occurs once in a turn, to become a CUDA graph.
    """
    first = WARM_UP + 1 if device.type == "cuda" else 1
    times = [(_seconds(whole, device), _seconds(bare, device)) for _ in range(first + turns)][first:]
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
