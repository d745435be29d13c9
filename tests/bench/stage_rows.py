"""Rows of the table of `make scale`: one for each stage."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Setting(NamedTuple):
    """Where the run is to take place, and on what.

    Attributes:
        num_train: training images.
        num_val: validation images.
        cores: of the CPU, as many processes decode and refine.
        start_seconds: of a process, until it works.
        base_bytes: host memory of a process before it works.
        free_device_bytes: of the GPU; 0 on a CPU.
        memory_bytes: of the host; files that are larger are read from the disk.
    """

    num_train: int
    num_val: int
    cores: int
    start_seconds: float
    base_bytes: float
    free_device_bytes: float = 0.0
    memory_bytes: float = math.inf

    def fits_memory(self, image_bytes: float) -> bool:
        """Whether the host can keep all training images of this size in its cache of files."""
        return self.num_train * image_bytes < self.memory_bytes


class Row(NamedTuple):
    """A stage of the whole run; memory and disk in bytes, `device_bytes` 0 where no GPU is used."""

    stage: str
    seconds: float
    device_bytes: float
    host_bytes: float
    disk_bytes: float
    basis: str


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown: hours and gigabytes; the total has the sum of hours and disk, and the largest memory."""
    yield "| stage | hours | device GB | host GB | disk GB | measured, and how often it is needed |"
    yield "| --- | ---: | ---: | ---: | ---: | --- |"
    total = Row(
        "**total**",
        math.fsum(row.seconds for row in rows),
        max(row.device_bytes for row in rows),
        max(row.host_bytes for row in rows),
        math.fsum(row.disk_bytes for row in rows),
        "hours and disk added, largest memory",
    )
    for row in (*rows, total):
        device = f"{row.device_bytes / 1e9:.1f}" if row.device_bytes else "-"
        yield (
            f"| {row.stage} | {_digits(row.seconds / 3600)} | {device} | {row.host_bytes / 1e9:.1f} | "
            f"{_digits(row.disk_bytes / 1e9)} | {row.basis} |"
        )


def _digits(value: float) -> str:
    """Two or three digits that count, for tables of large and small values."""
    places = next((places for least, places in ((10, 0), (1, 1), (0.1, 2)) if value >= least), 4)
    return f"{value:,.{places}f}"
