"""One thing that is not as it should be."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was found, and the way out.

    Attributes:
        what: the path or process, and what is wrong with it.
        remedy: what to do, as a command where there is one.
        fix: does what `remedy` says; None where that may lose something, or is for the user to decide.
    """

    what: str
    remedy: str
    fix: Callable[[], object] | None = None
