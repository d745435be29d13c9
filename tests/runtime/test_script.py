"""The frame of every script: what it says at the start and at the end, and the times that it keeps."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import DistBackendError

from stages.core.launched import VARIABLES
from stages.runtime.script import duration, read_times, rough_duration, run, stage_parser, written_since
from stages.settings.errors import UserError
from tests.datasets import REPOSITORY


def test_every_stage_reads_the_settings_of_the_repository_unless_told_otherwise() -> None:
    parser = stage_parser("embed", "What it does.")
    assert parser.parse_args([]).params == Path("params.yaml")
    assert parser.parse_args(["--params", "mine.yaml"]).params == Path("mine.yaml")
    shown = " ".join(parser.format_help().split())
    assert shown.startswith("usage: python -m stages.embed [-h] [--params PARAMS] What it does.")
    assert shown.endswith("--params PARAMS settings (default: params.yaml)")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (101, "1 min 41 s"),
        (3600, "1 h 0 min"),
        (7384, "2 h 3 min"),
        (2e5, "55 h 33 min"),
    ],
)
def test_time_spans_are_told_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(41, "41 s"), (101, "1 min 41 s"), (130, "2 min"), (2584, "43 min"), (7384, "2 h 3 min")],
)
def test_estimated_time_spans_are_told_in_minutes(seconds: float, text: str) -> None:
    assert rough_duration(seconds) == text


def test_a_stage_says_how_long_it_took_last_time_and_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:evaluate@raw")
    for name in ("RANK", "DVC_EXP_NAME", "QUIET"):
        monkeypatch.delenv(name, raising=False)
    old = Path("old.npy")
    old.write_text("")
    os.utime(old, (1, 1))
    monkeypatch.setattr(sys, "argv", ["evaluate", "--in", "old.npy", "--out", "new.json", "--name", "raw"])
    run(lambda: None)
    assert capsys.readouterr().out == "evaluate@raw: done_in 0 s  wrote nothing\n"
    Path(".state/seconds.json").write_text(json.dumps({"evaluate@raw": 101.0}))
    run(lambda: Path("new.json").write_text("{}") and None)
    first, last = capsys.readouterr().out.splitlines()
    assert first == "evaluate@raw: starts its last run took 1 min 41 s"
    assert last == "evaluate@raw: done_in 0 s  wrote new.json"
    assert read_times()["evaluate@raw"] < 60


def test_a_damaged_file_of_times_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".state").mkdir()
    for text in ("", "[1]", "{"):
        Path(".state/seconds.json").write_text(text)
        assert read_times() == {}


def test_times_that_cannot_be_kept_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The outputs are written by then."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:label")
    for name in ("RANK", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    Path(".state").write_text("in the way")
    run(lambda: None)
    assert capsys.readouterr().err.startswith("label: warning: .state")


def _launch_as(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, rank)


def test_one_of_several_processes_leaves_the_frame_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:train")
    _launch_as("0", monkeypatch)
    run(lambda: None)
    assert capsys.readouterr().out == ""
    assert read_times() == {}


def _ended(fault: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str]:
    def fail() -> None:
        raise fault

    with pytest.raises(SystemExit) as ended:
        run(fail)
    return ended.value.code, capsys.readouterr().err


def test_one_of_several_processes_says_which_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _launch_as("3", monkeypatch)
    here = f"error: process 3 on {socket.gethostname()}: "
    assert _ended(UserError("images: not found"), capsys) == (2, f"{here}images: not found\n")
    lost = [
        RuntimeError("[gloo/transport/tcp/pair.cc:5] Read error\nmore"),
        DistBackendError("NCCL error\nthe cause"),
    ]
    for fault in lost:
        code, shown = _ended(fault, capsys)
        assert code == 1
        assert shown.startswith(
            f"{here}another process has ended, could not be reached, or did not answer for "
        )
        assert shown.endswith(f" ({'; '.join(str(fault).splitlines())})\n")


def test_a_variable_that_another_program_sets_makes_no_process_of_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "3")
    code, shown = _ended(UserError("the environment has RANK but not LOCAL_RANK"), capsys)
    assert (code, shown) == (2, "error: the environment has RANK but not LOCAL_RANK\n")


@pytest.mark.parametrize(("rank", "text"), [("0", "shapes differ"), (None, "gloo/transport")])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, rank: str | None, text: str) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        _launch_as(rank, monkeypatch)

    def fail() -> None:
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=text):
        run(fail)


def test_an_experiment_keeps_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:train")
    monkeypatch.setenv("DVC_EXP_NAME", "one")
    run(lambda: None)
    assert read_times() == {}


def test_a_tool_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    run(lambda: None)
    assert capsys.readouterr() == ("", "")
    assert not Path(".state").exists()


def test_written_are_the_arguments_that_are_new(tmp_path: Path) -> None:
    clock = time.time()
    (tmp_path / "folder").mkdir()
    found = written_since(["--out", str(tmp_path / "folder"), "raw", str(tmp_path / "missing")], clock)
    assert found == [str(tmp_path / "folder")]


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("stage", ["", "dvc.yaml:label"])
def test_a_reader_that_has_read_enough_ends_it_without_a_traceback(
    flush: bool, stage: str, tmp_path: Path
) -> None:
    """As in `... | head`; a broken pipe to a process of its own is a bug like any other."""
    text = f"print('first', flush=True); run(lambda: [input(), *(print(n, flush={flush}) for n in range(9))])"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from stages.runtime.script import run; {text}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "DVC_STAGE": stage, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""},
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdout = None
    assert process.communicate(b"\n", timeout=60) == (None, b"")
    assert process.returncode == 1


def test_another_pipe_that_breaks_is_told() -> None:
    def fail() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(fail)
