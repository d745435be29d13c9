"""Locks on files: one holder at a time, and a warning where the disk has none."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from stages import pretrain
from stages.runtime.locks import WITHOUT_LOCKS, try_lock

ARGV = ["--images", "images/train", "--out", "out", "--history", "h.csv", "--metrics", "m.json"]


def _answer(number: int, patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(fcntl, "flock", refuse)


def test_a_lock_has_one_holder_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lock"
    with path.open("w") as one, path.open("a") as other:
        assert try_lock(one, "train")
        assert not try_lock(other, "train")
    with path.open("a") as later:
        assert try_lock(later, "train")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", WITHOUT_LOCKS)
def test_a_disk_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    _answer(number, monkeypatch)
    with (tmp_path / "lock").open("w") as file:
        assert try_lock(file, "train")
    assert capsys.readouterr().err == (
        f"train: warning: {tmp_path}/lock: its disk has no locks ({os.strerror(number)}), so runs do not "
        "notice each other; start one at a time\n"
    )


def test_another_fault_of_a_lock_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(errno.EBADF, monkeypatch)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="Bad file descriptor"):
        try_lock(file, "train")


def test_a_stage_runs_on_a_disk_without_locks(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _answer(errno.ENOLCK, monkeypatch)
    bench.params(pretrain__method="none")
    pretrain.main(ARGV)
    assert Path("out").exists()
    assert capsys.readouterr().err.count("its disk has no locks") == 1
