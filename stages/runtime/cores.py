"""How many CPU cores there are to work with, and processes that do not outlive the one that started them."""

import multiprocessing
import os
import threading


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
