"""What a stage prints: results, warnings, and the progress of long-running work.

Progress is a bar on a terminal and a line every 30 seconds in a log file. With several processes only the
first one prints. The environment variable QUIET=1 leaves warnings and errors alone; NO_COLOR=1 takes the
color from warnings.
"""

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

from stages.core import launched

Item = TypeVar("Item")
LOG_INTERVAL_SECONDS = 30.0
YELLOW, PLAIN = "\033[33m", "\033[0m"


def track(items: Iterable[Item], what: str, *, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Yield `items` and show progress, speed and remaining time.

    Args:
        items: items to process.
        what: name of the work.
        total: number of items, if `items` has no length.
        unit: name of one item.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not _speaks() or _is_quiet():
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, unit=unit, delay=0.5, leave=False)
    else:
        yield from _track_in_log(items, what, total, unit)


def _track_in_log(items: Iterable[Item], what: str, total: int | None, unit: str) -> Iterator[Item]:
    """Print whole lines; work shorter than the interval prints none."""
    start = shown = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - shown >= LOG_INTERVAL_SECONDS:
            rate, shown = done / (now - start), now
            left = f", {(total - done) / rate:.0f} s left" if total else ""
            write_line(f"{what}: {done}/{total or '?'} {unit}, {rate:.3g}/s{left}")
        yield item


def say(stage: str, **values: object) -> None:
    """Print one status line of `name value` pairs, for an epoch or a result; NaN is left out."""
    pairs = "  ".join(f"{name} {_shown(value)}" for name, value in values.items() if not _is_nan(value))
    tell(f"{stage}: {pairs}")


def tell(text: str) -> None:
    """Print text that is no warning."""
    if _speaks() and not _is_quiet():
        print(text, flush=True)


def warn(stage: str, text: str) -> None:
    """Print one warning line, which stands out on a terminal."""
    if _speaks():
        word = "warning"
        if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            word = f"{YELLOW}{word}{PLAIN}"
        write_line(f"{stage}: {word}: {text}")


def write_line(line: str) -> None:
    """Write one line to stderr at once, so that lines of several processes do not run into each other.

    `print` writes the end of a line by itself where Python does not buffer (`PYTHONUNBUFFERED`).
    """
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _is_quiet() -> bool:
    return os.environ.get("QUIET", "") not in ("", "0")


def _speaks() -> bool:
    return launched.rank() in (None, 0)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
