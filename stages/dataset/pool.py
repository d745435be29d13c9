"""Work in several processes, its results in order, with little of it on the way."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from stages.runtime.errors import UserError

Result = TypeVar("Result")
CALLS_AHEAD = 4  # for each worker: enough to keep it busy, few enough to keep memory flat


def call_in_order(
    function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[Result]:
    """The result of each call, in the order of the calls; one worker is this process itself.

    Raises:
        UserError: a process died.
    """
    if workers <= 1:
        yield from (function(*arguments) for arguments in calls)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) as pool:
        try:
            pending: deque[Future[Result]] = deque()
            for arguments in calls:
                pending.append(pool.submit(function, *arguments))
                if len(pending) >= CALLS_AHEAD * workers:
                    yield pending.popleft().result()
            yield from (future.result() for future in pending)
        except BrokenProcessPool as error:
            raise UserError(
                "runtime.num_workers: a decoding process was killed, most likely for want of memory; "
                "set a smaller number"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker waits for work for ever when its parent was killed; this one notices."""
    threading.Thread(target=_await_end_of_parent, daemon=True).start()


def _await_end_of_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
