"""Pools of processes and of threads that return results in order and limit the number of pending calls."""

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from stages.settings.errors import UserError


def count_cores() -> int:
    """Return the number of CPU cores available to this process, within the limits of a container (cgroup)."""
    import joblib  # takes a quarter of a second to load, and few processes need it

    return int(joblib.cpu_count())


def heed_quota() -> None:
    """Let libraries start no more threads than this process has cores.

    torch, faiss and BLAS count the cores of the machine. In a container with a quota they would start threads
    for all of them, which then wait for each other. OMP_NUM_THREADS takes precedence.
    """
    torch = sys.modules.get("torch")
    if torch is None or "OMP_NUM_THREADS" in os.environ:
        return
    if (cores := count_cores()) < torch.get_num_threads():
        threadpool_limits(cores)
        torch.set_num_threads(cores)  # also those of later threads, such as those of autograd


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


Item = TypeVar("Item")
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
            yield from _in_order(pool, function, calls, CALLS_AHEAD * workers)
        except BrokenProcessPool as error:
            raise UserError(
                f"runtime.num_workers: one of {workers} worker processes was killed, probably because "
                "memory ran out; set a smaller number"
            ) from error


def call_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result]:
    """Yield the result for each item, in order; items are taken as the calls need them.

    Args:
        function: function to call; it gains from threads where it spends its time outside of Python.
        items: its arguments.
        threads: number of threads, and of results that wait; 0: the calls are made as they are needed.
    """
    if not threads:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from _in_order(pool, function, ((item,) for item in items), threads + 1)


def _in_order(
    pool: Executor, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], most: int
) -> Iterator[Result]:
    """Results in the order of the calls, of which at most so many are pending.

    If there is no next call because of a fault, the results of those before come first.
    """
    pending: deque[Future[Result]] = deque()
    following = iter(calls)
    try:
        while True:
            try:
                arguments = next(following)
            except StopIteration:
                break
            except Exception:
                while pending:
                    yield pending.popleft().result()
                raise
            pending.append(pool.submit(function, *arguments))
            if len(pending) >= most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(prepare_worker: Callable[[], None] | None) -> None:
    end_with_parent()
    if prepare_worker is not None:
        prepare_worker()
