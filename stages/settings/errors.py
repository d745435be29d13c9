"""User errors, which are reported without a traceback."""

from collections.abc import Iterable, Sequence

MOST_ALIKE = 3  # files with one and the same fault that are all named


class UserError(Exception):
    """One or more faults of the input; each is a line with key or path, value, rule and remedy."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class DamagedFileError(UserError):
    """A file that cannot be read or decoded: it may be left out where others can do without it."""


def grouped(faults: Sequence[str]) -> tuple[str, ...]:
    """Faults of files as lines; many files with one fault become one line with examples and their number.

    A fault of a file is written `name: what is wrong`.
    """
    names: dict[str, list[str]] = {}
    for fault in faults:
        name, sign, what = fault.partition(": ")
        names.setdefault(what if sign else fault, []).append(name if sign else "")
    lines = []
    for fault in faults:
        name, sign, what = fault.partition(": ")
        alike = names.get(what if sign else fault, [])
        if len(alike) <= MOST_ALIKE:
            lines.append(fault)
        elif name == alike[0]:
            lines.append(f"{', '.join(alike[:MOST_ALIKE])}, ... ({len(alike):,} files): {what}")
    return tuple(lines)


def raise_faults(faults: Iterable[str]) -> None:
    """Raise all faults as one error, so that one run reports everything to fix.

    Raises:
        UserError: there is at least one fault.
    """
    collected = grouped(tuple(faults))
    if collected:
        raise UserError(*collected)
