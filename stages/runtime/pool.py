"""Work in several processes, its results in order, with little of it on the way."""

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
    """Cores that this process may use, where the system says so, else those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """For a worker process: end as soon as its parent is gone, however that ended.

    The pool of a process that was killed would otherwise wait for work for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent,), daemon=True).start()


def _wait_and_exit(parent: "multiprocessing.process.BaseProcess") -> None:
    parent.join()
    os._exit(1)


Result = TypeVar("Result")
CALLS_AHEAD = 4  # for each worker: enough to keep it busy, few enough to keep memory flat


def call_in_order(
    function: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    workers: int,
    *,
    prepare_worker: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """The result of each call, in the order of the calls; one worker is this process itself.

    Args:
        function: to call; importable by name, as are its arguments.
        calls: the arguments of each.
        workers: number of processes.
        prepare_worker: called first in each of them; not in this process.

    Raises:
        UserError: a process was killed.
    """
    if workers <= 1:
        yield from (function(*arguments) for arguments in calls)
        return
    # Spawned, not forked: a fork of a process whose libraries have started threads can hang.
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
                f"runtime.num_workers: one of {workers} processes was killed, most likely for want of "
                "memory; set a smaller number"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(prepare_worker: Callable[[], None] | None) -> None:
    end_with_parent()
    if prepare_worker is not None:
        prepare_worker()
