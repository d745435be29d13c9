"""What stages print: results without NaN, warnings in one style, nothing but warnings if quiet."""

import io
import sys
from typing import Any

import pytest

from stages.core.launched import VARIABLES
from stages.runtime.progress import say, track, warn, write_line


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUIET", "NO_COLOR", *VARIABLES):
        monkeypatch.delenv(name, raising=False)


def test_figures_that_do_not_exist_yet_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    say("train", loss=1.25, moved_share=float("nan"), epoch="1/5")
    assert capsys.readouterr().out == "train: loss 1.25  epoch 1/5\n"


def test_quiet_leaves_warnings_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIET", "1")
    say("train", loss=1.0)
    assert list(track([1, 2], "train")) == [1, 2]
    warn("train", "few images")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "train: warning: few images\n"


@pytest.mark.parametrize("forbidden", [False, True])
def test_warnings_have_a_color_on_a_terminal_only_where_that_is_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, forbidden: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    if forbidden:
        monkeypatch.setenv("NO_COLOR", "1")
    warn("label", "few clusters")
    printed = capsys.readouterr().err
    assert ("\033" in printed) == (not forbidden)
    assert "few clusters" in printed


def test_only_the_first_process_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")  # alone, as scripts of jobs export it for programs of another kind
    warn("train", "few images")
    assert capsys.readouterr().err == "train: warning: few images\n"
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")
    say("train", loss=1.0)
    warn("train", "few images")
    assert capsys.readouterr() == ("", "")


def test_a_line_is_written_at_once_where_nothing_is_buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder(io.RawIOBase):
        def __init__(self) -> None:
            self.writes: list[bytes] = []

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.writes.append(bytes(data))
            return len(data)

    written = Recorder()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, write_through=True))
    print("in two", file=sys.stderr)
    write_line("error: in one")
    assert written.writes == [b"in two", b"\n", b"error: in one\n"]
