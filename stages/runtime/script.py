"""Frame of all scripts: arguments, errors of users without a traceback, what was written, the run time."""

import argparse
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from stages.core import launched
from stages.core.artefacts import read_json, write_json
from stages.core.repository import EXPERIMENT
from stages.runtime.pool import heed_quota
from stages.runtime.progress import say, warn, write_line
from stages.settings.errors import UserError

EXIT_CODE = 2
FAILED = 1
STDOUT = 1  # file descriptor
INTERRUPTED = 130  # exit code for Ctrl-C in shells
CLOCK_GRAIN_SECONDS = 0.1  # file systems round times
TIMES = Path(".state/seconds.json")  # last run time of each stage; not a tracked output


def stage_parser(stage: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a stage's script, with what all have: its description and --params.

    Args:
        stage: name of the stage and of its script.
        doc: docstring of the script.
    """
    parser = argparse.ArgumentParser(prog=f"python -m stages.{stage}", description=doc)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
    return parser


def run(main: Callable[[], None]) -> None:
    """Run a script. A `UserError` is printed and exits with code 2; any other exception is a bug.

    Ctrl-C, and a reader such as `head` that has read enough, end it without a traceback.
    """
    is_first = launched.rank() is None  # not one of several processes that a stage has started
    _in_plain_words(partial(_tell_and_run, main, is_first=is_first), is_first=is_first)


def _tell_and_run(main: Callable[[], None], *, is_first: bool) -> None:
    """Run it; of a stage, say how long it took last time and now, and what it wrote."""
    stage, start, clock = _stage() if is_first else "", time.monotonic(), time.time()
    if stage and stage in (known := read_times()):
        say(stage, starts=f"its last run took {duration(known[stage])}")
    heed_quota()
    try:
        main()
    finally:
        sys.stdout.flush()  # here, and not at the end of Python, a lost reader is noticed in time
    seconds = time.monotonic() - start
    if not stage:
        return
    say(stage, done_in=duration(seconds), wrote=", ".join(written_since(sys.argv[1:], clock)) or "nothing")
    if EXPERIMENT not in os.environ:  # experiments may run in parallel
        try:
            write_json(TIMES, {**read_times(), stage: round(seconds, 1)})
        except UserError as error:  # a full disk; the outputs are there, and this is only news
            warn(stage, str(error))


def _in_plain_words(main: Callable[[], None], *, is_first: bool) -> None:
    """Run it; exit with a message, and no traceback, where the cause is not a bug."""
    try:
        main()
    except UserError as error:
        write_line(f"error: {_where()}{error}")
        sys.exit(EXIT_CODE)
    except RuntimeError as error:
        if is_first or not _is_lost(error):
            raise
        write_line(
            f"error: {_where()}another process has ended, could not be reached, or did not answer for "
            "runtime.timeout_seconds; the messages of all processes say why; run `dvc repro` again to go on "
            f"({'; '.join(filter(None, map(str.strip, str(error).splitlines())))})"
        )
        sys.exit(FAILED)
    except BrokenPipeError:
        if not _has_lost_reader():
            raise
        sys.exit(FAILED)
    except KeyboardInterrupt:
        write_line("interrupted; run it again to go on from what is saved")
        sys.exit(INTERRUPTED)


def _has_lost_reader() -> bool:
    """Whether nobody reads what is printed any more; if so, the rest of it goes nowhere."""
    poll = select.poll()
    poll.register(STDOUT, select.POLLOUT)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # else Python complains when it closes it
    return True


def _where() -> str:
    """The process and its host, if it is one of several."""
    rank = launched.rank()
    return "" if rank is None else f"process {rank} on {socket.gethostname()}: "


def _is_lost(error: RuntimeError) -> bool:
    """Whether it is what torch raises in the other processes if one of several is lost."""
    from torch.distributed import DistError  # takes a second, and such a process has loaded it already

    return isinstance(error, DistError) or "gloo/transport" in str(error)


def _stage() -> str:
    """Name of the stage of `dvc repro` that this script runs as, or ''."""
    return os.environ.get("DVC_STAGE", "").rpartition(":")[2]


def written_since(arguments: Sequence[str], clock: float) -> list[str]:
    """The arguments that are files or folders written since a time, in seconds since 1970."""
    paths = [one for one in arguments if not one.startswith("-") and os.path.exists(one)]
    return [one for one in paths if os.stat(one).st_mtime >= clock - CLOCK_GRAIN_SECONDS]


def duration(seconds: float) -> str:
    """Format a time span, such as 1 min 41 s."""
    hours, minutes = divmod(round(seconds) // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{seconds:.0f} s"


def rough_duration(seconds: float) -> str:
    """Format an estimated time span: from two minutes on in minutes, such as 43 min."""
    return duration(seconds) if seconds < 120 else duration(60 * round(seconds / 60)).removesuffix(" 0 s")


def read_times() -> dict[str, float]:
    """Read the seconds of the last run of each stage; a damaged file counts as none, for it is only news."""
    try:
        known = read_json(TIMES) if TIMES.exists() else {}
    except UserError:
        return {}
    return dict(known) if isinstance(known, dict) else {}
