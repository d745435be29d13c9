"""User errors, which are reported without a traceback."""

from collections.abc import Iterable


class UserError(Exception):
    """One or more faults of the input; each is a line with key or path, value, rule and remedy."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def raise_faults(faults: Iterable[str]) -> None:
    """Raise all faults as one error, so that one run reports everything to fix.

    Raises:
        UserError: there is at least one fault.
    """
    collected = tuple(faults)
    if collected:
        raise UserError(*collected)
