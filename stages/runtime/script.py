"""How a script ends: a user's mistake without a traceback, and the time that a stage took."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from stages.core.artefacts import read_json, write_json
from stages.settings.errors import UserError

EXIT_CODE = 2
INTERRUPTED = 130  # the code of Ctrl-C in shells
TIMES = Path(".state/seconds.json")  # of the last run of each stage; no result, and not tracked


def run(main: Callable[[], None]) -> None:
    """Run a script. A `UserError` is printed and ends it with exit code 2; every other error is a bug.

    Ctrl-C needs no traceback.
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
    """Note the time of a stage of `dvc repro`; experiments run elsewhere, at times several at once."""
    stage = os.environ.get("DVC_STAGE")
    if stage and not {"DVC_EXP_NAME", "RANK"} & set(os.environ):
        write_json(TIMES, {**read_times(), stage.rpartition(":")[2]: round(seconds, 1)})


def read_times() -> dict[str, float]:
    """Seconds of the last run of each stage."""
    return dict(read_json(TIMES)) if TIMES.exists() else {}
