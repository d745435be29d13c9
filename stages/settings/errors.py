"""What a user did wrong, said without a traceback."""

import sys
from collections.abc import Callable, Iterable

EXIT_CODE = 2
INTERRUPTED = 130  # as shells say it of Ctrl-C


class UserError(Exception):
    """One or several faults of the input, each a line that names key or path, value, rule and remedy."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def raise_faults(faults: Iterable[str]) -> None:
    """Raise all faults together, so that one run shows everything there is to mend.

    Raises:
        UserError: there is at least one fault.
    """
    collected = tuple(faults)
    if collected:
        raise UserError(*collected)


def run(main: Callable[[], None]) -> None:
    """Run a script; a `UserError` is printed and ends it with exit code 2, everything else is a bug.

    Ctrl-C is neither: whoever presses it knows why, and needs no traceback.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)
