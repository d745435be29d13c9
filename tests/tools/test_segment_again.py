"""`segment` into a folder that has outputs already: other runs at the same time, and corrected label maps."""

import fcntl
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.settings.errors import UserError
from stages.tools import segment
from tests.datasets import write_image

FLAGS = ["--out", "found", "--device", "cpu", "--model", "."]
SEGMENT = ["photos", *FLAGS]


@pytest.fixture
def ready(bench: Any) -> Any:
    bench.write_segmenter()
    bench.write_centroids()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "trip/c.bmp"):
        write_image(Path("photos") / name, rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    return bench


# Two runs at the same time


def test_a_second_run_into_the_same_folder_is_refused_and_the_first_loses_nothing(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, said = segment.write_outputs, []

    def write_and_start_another(*rest: Any) -> None:
        if not said:
            with pytest.raises(UserError) as fault:
                segment.main(["photos/b.jpg", *FLAGS, "--overwrite"])
            said.append(str(fault.value))
        write(*rest)

    with monkeypatch.context() as inner:
        inner.setattr(segment, "write_outputs", write_and_start_another)
        segment.main(SEGMENT)
    assert said == [
        "found: another run of segment writes there (lock: found/.segment.lock); wait for it to end, or "
        "choose another folder with --out"
    ]
    assert pd.read_csv("found/manifest.csv")["source"].tolist() == ["a.png", "b.jpg", "trip/c.bmp"]
    segment.main(SEGMENT)


def test_the_lock_leaves_nothing_behind_and_a_left_one_is_no_file_of_others(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    segment.main(SEGMENT)
    assert not Path("found/.segment.lock").exists()
    Path("found/.segment.lock").touch()  # of a run that was killed
    segment.main([*SEGMENT, "--overwrite"])
    Path("photos/.segment.lock").touch()
    capsys.readouterr()
    segment.main(SEGMENT)
    said = capsys.readouterr().out
    assert "segment: 3 images are done already" in said
    assert "left out 1: hidden, or made by the system (.segment.lock)" in said


def test_a_lock_that_another_run_removes_at_its_end_is_none(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run ends after this one has opened the file and before it locks it."""
    lock, locked = fcntl.flock, []

    def remove_and_lock(file: Any, operation: int) -> None:
        if not locked:
            Path(file.name).unlink()
        lock(file, operation)
        locked.append(Path(file.name).exists())

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    segment.main(SEGMENT)
    assert locked == [False, True]


def test_a_disk_without_locks_is_named(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert ready.fault(segment.main, SEGMENT) == (
        "found/.segment.lock: cannot be locked (No locks available); choose a folder on another disk with "
        "--out"
    )
