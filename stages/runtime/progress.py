"""Progress of long work: a bar on a terminal, a line every half minute in a log file."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
LOG_INTERVAL_SECONDS = 30.0


def track(items: Iterable[Item], what: str, *, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Yield `items` and show how far the work is, how fast it goes and how long it will take."""
    is_terminal = sys.stderr.isatty()
    yield from tqdm(
        items,
        desc=what,
        total=total,
        unit=unit,
        mininterval=0.1 if is_terminal else LOG_INTERVAL_SECONDS,
        # A log gets whole lines, and none for work that is over before the first one is due.
        bar_format=None
        if is_terminal
        else "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}]\n",
        delay=0.5 if is_terminal else LOG_INTERVAL_SECONDS,
        leave=False,
    )


def say(stage: str, **values: object) -> None:
    """One status line of `name value` pairs, for an epoch or a result."""
    pairs = "  ".join(f"{name} {_shown(value)}" for name, value in values.items())
    print(f"{stage}: {pairs}", flush=True)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
