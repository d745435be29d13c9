"""One line of the table of `make bench`."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from stages.core.graph import Wish
from tests.bench.head import machine

# Values of `runtime.cuda_graph` that a step is measured with, by the kind of device, and how lines name them.
WISHES: dict[str, dict[Wish, str]] = {
    "cpu": {"auto": ""},
    "cuda": {"auto": "", False: ", without CUDA graphs"},
}


class Line(NamedTuple):
    """What was measured.

    Attributes:
        what: the work and its sizes.
        here: the figure with its unit.
        beside: the figure to compare it with, and of what it is.
        ratio: of the two; for goodput 1 is best, for others it says how many times faster.
    """

    what: str
    here: str
    beside: str = "-"
    ratio: float | None = None

    def __str__(self) -> str:
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        return f"| {self.what} | {self.here} | {self.beside} | {ratio} |"


def head(device: torch.device) -> Iterator[str]:
    """What stands above the lines: machine, versions, names of the columns."""
    yield from machine(device)
    yield ""
    yield "| what | measured | beside it | ratio |"
    yield "| --- | ---: | ---: | ---: |"
