"""What a user did wrong, said without a traceback."""

from collections.abc import Iterable


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
