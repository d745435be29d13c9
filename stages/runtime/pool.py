"""Process pool that returns results in order and limits the number of pending calls."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from stages.settings.errors import UserError


def count_cores() -> int:
    """Return the number of CPU cores available to this process, within the limits of a container (cgroup)."""
    import joblib  # takes a quarter of a second to load, and few processes need it

    return int(joblib.cpu_count())


def end_with_parent() -> None:
    """Make a worker process exit as soon as its parent ends for any reason.

    Otherwise the workers of a killed process would wait for work forever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent,), daemon=True).start()


def _wait_and_exit(parent: "multiprocessing.process.BaseProcess") -> None:
    parent.join()
    os._exit(1)


Result = TypeVar("Result")
CALLS_AHEAD = 4  # per worker: enough to keep it busy, with bounded memory


def call_in_order(
    function: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    workers: int,
    *,
    prepare_worker: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Yield the result of each call, in order; a single worker runs in this process.

    Args:
        function: function to call; it and its arguments must be picklable.
        calls: arguments of each call.
        workers: number of worker processes.
        prepare_worker: called once at the start of each worker process.

    Raises:
        UserError: a worker process was killed.
    """
    if workers <= 1:
        yield from (function(*arguments) for arguments in calls)
        return
    # Spawn instead of fork: forking a process whose libraries run threads can deadlock.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (prepare_worker,)) as pool:
        try:
            pending: deque[Future[Result]] = deque()
            for arguments in calls:
                pending.append(pool.submit(function, *arguments))
                if len(pending) >= CALLS_AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                f"runtime.num_workers: one of {workers} worker processes was killed, probably because "
                "memory ran out; set a smaller number"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(prepare_worker: Callable[[], None] | None) -> None:
    end_with_parent()
    if prepare_worker is not None:
        prepare_worker()
