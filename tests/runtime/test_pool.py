"""The number of cores that a stage divides its work among."""

import builtins
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from stages.runtime.pool import call_in_threads, count_cores
from tests.datasets import REPOSITORY

LIMIT = "/sys/fs/cgroup/cpu.max"


@pytest.mark.parametrize(
    ("limit", "cores"), [("300000 100000", 3), ("250000 100000", 3), ("900000 100000", 4), ("max 100000", 4)]
)
def test_a_container_has_no_more_cores_than_its_cgroup(
    monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    """The machine has eight, four of them for this process."""
    opened, exists = builtins.open, os.path.exists

    def open_limit(name: Any, *rest: Any, **more: Any) -> Any:
        return io.StringIO(limit) if name == LIMIT else opened(name, *rest, **more)

    monkeypatch.setattr(builtins, "open", open_limit)
    monkeypatch.setattr(os.path, "exists", lambda path: path == LIMIT or exists(path))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    assert count_cores() == cores


HEED = """
import torch, faiss
from stages.runtime import pool
torch.set_num_threads(4)
faiss.omp_set_num_threads(4)
pool.count_cores = lambda: 2
pool.heed_quota()
print(torch.get_num_threads(), faiss.omp_get_max_threads())
"""


@pytest.mark.parametrize(("given", "threads"), [(None, "2 2"), ("4", "4 4")])
def test_libraries_start_no_more_threads_than_there_are_cores(given: str | None, threads: str) -> None:
    """Of a process of its own: four threads by default, a quota of two cores."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("OMP_NUM_THREADS", None)
    environment |= {} if given is None else {"OMP_NUM_THREADS": given}
    command = [sys.executable, "-c", HEED]
    assert subprocess.check_output(command, env=environment, text=True).strip() == threads


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_give_results_in_order_and_take_no_more_than_they_need(threads: int) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    for done, result in enumerate(call_in_threads(_square_after_a_while, numbers(), threads)):
        assert result == done**2
        assert len(taken) <= done + threads + 1
    assert len(taken) == 20


def _square_after_a_while(number: int) -> int:
    time.sleep(0.01 * (number % 3 == 0))
    return number**2


def test_a_call_that_fails_ends_the_others() -> None:
    called: list[int] = []

    def fail_at_five(number: int) -> int:
        called.append(number)
        if number == 5:
            raise ValueError("five")
        return number

    found: list[int] = []
    with pytest.raises(ValueError, match="five"):
        found.extend(call_in_threads(fail_at_five, range(1000), 2))
    assert max(called) <= 8
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_what_is_under_way_comes_before_the_fault_of_what_follows(threads: int) -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise ValueError("no more")

    found: list[int] = []
    with pytest.raises(ValueError, match="no more"):
        found.extend(call_in_threads(_square_after_a_while, numbers(), threads))
    assert found == [0, 1, 4, 9, 16]
