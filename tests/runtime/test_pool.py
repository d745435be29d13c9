"""The number of cores that a stage divides its work among."""

import builtins
import io
import os
from typing import Any

import pytest

from stages.runtime.pool import count_cores

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
