"""Entry point of all scripts: reports user errors without a traceback and records the run time."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from stages.core.artefacts import read_json, write_json
from stages.settings.errors import UserError

EXIT_CODE = 2
INTERRUPTED = 130  # exit code for Ctrl-C in shells
TIMES = Path(".state/seconds.json")  # last run time of each stage; not a tracked output


def run(main: Callable[[], None]) -> None:
    """Run a script. A `UserError` is printed and exits with code 2; any other exception is a bug.

    Ctrl-C exits without a traceback.
    """
    start = time.monotonic()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        print("interrupted; run it again to continue", file=sys.stderr)
        sys.exit(INTERRUPTED)
    _keep_time(time.monotonic() - start)


def _keep_time(seconds: float) -> None:
    """Record the run time of a stage of `dvc repro`; skipped for experiments, which may run in parallel."""
    stage = os.environ.get("DVC_STAGE")
    if stage and not {"DVC_EXP_NAME", "RANK"} & set(os.environ):
        write_json(TIMES, {**read_times(), stage.rpartition(":")[2]: round(seconds, 1)})


def read_times() -> dict[str, float]:
    """Read the seconds of the last run of each stage."""
    return dict(read_json(TIMES)) if TIMES.exists() else {}
