"""What a reader of a folder notices on its way: faults to tell together, files left out, texts it read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.dataset.files import read_raw
from stages.dataset.source import RawFile
from stages.runtime.errors import raise_faults

MOST_NAMES = 10  # that one message lists


@dataclass
class Findings:
    """Collected while a data set is listed.

    Attributes:
        faults: of the user's, each a line.
        skipped: how many files are no part of the data set, by the reason.
        files: lists and names that were read.
        notes: for the log.
    """

    faults: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    files: list[RawFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read_text(self, root: Path, name: str) -> str:
        """Text of a file that belongs to the data set; empty text, and a fault, where there is none."""
        try:
            file, content = read_raw(root, name)
            self.files.append(file)
            return content.decode("utf-8-sig")
        except FileNotFoundError:
            self.faults.append(f"{root / name}: not found; add it, with one name a line")
        except UnicodeDecodeError:
            self.faults.append(f"{root / name}: is not UTF-8 text; save it as such")
        return ""

    def raise_faults(self) -> None:
        """Tell everything at once.

        Raises:
            UserError: there is a fault.
        """
        raise_faults(self.faults)


def listed(names: Sequence[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
