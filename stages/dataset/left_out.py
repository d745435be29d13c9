"""Files that are not used, under their reasons: messages name the first of each, a table all."""

import itertools
import unicodedata
from dataclasses import dataclass, field

import pandas as pd

# Reasons. Those in SUSPECT may be pictures that the user wants; a large share of them is a warning.
HIDDEN = "hidden, or made by the system"
MASK = "label map among the images, by its name or that of its folder"
OWN_OUTPUT = "written by segment"
NO_PICTURE = "no picture by its suffix"
OTHER_FORMAT = "picture of a format that is not read; convert it to PNG or JPEG"
HEIC = "picture in HEIC; convert it to JPEG, for example with ImageMagick: mogrify -format jpg *.heic"
VIDEO = "video; to use its frames, save them as images: ffmpeg -i clip.mp4 -vf fps=1 clip_%05d.jpg"
BROKEN_LINK = "link to nothing"
NO_ENTRY = "folder that this user may not read"
UNREADABLE = "folder that cannot be read"
LOOP = "link to a folder above it"
REPEAT = "folder that is listed under another name"
NO_FILE = "neither a file nor a folder"
SAME_NAME = "same name as another image but for the suffix"
SAME_OUTPUT = "its outputs would have the names of files or folders of another image; rename it"
ODD_NAME = "name with control characters or not UTF-8; rename it"
LONG_NAME = "name too long for those of its outputs; shorten it"
ELSEWHERE = "image outside of the folders that are read"
UNLISTED = "in neither list"
SPARE_LABELS = "label map of no validation image"
MISPLACED_LABELS = "label map called like a validation image, but not in labels/val"
TRAIN_LABELS = "label map of a training image, never read"
BAD = "damaged"
SUSPECT = (
    OTHER_FORMAT, HEIC, BROKEN_LINK, NO_ENTRY, UNREADABLE, MASK, SAME_NAME, ELSEWHERE, UNLISTED, SPARE_LABELS,
    MISPLACED_LABELS, BAD,
)  # fmt: skip

MOST_EXAMPLES = 3
LISTING = "left_out.csv"  # name of the file with the table
COLUMNS = ("file", "reason")


@dataclass
class Names:
    """The files that share a reason.

    Attributes:
        files: for each name what is wrong with the file, or empty where the reason says all.
    """

    files: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of files."""
        return len(self.files)

    @property
    def examples(self) -> list[str]:
        """The first names, with what is wrong."""
        first = itertools.islice(self.files.items(), MOST_EXAMPLES)
        return [f"{name}: {fault}" if fault else name for name, fault in first]

    def __str__(self) -> str:
        more = f", ... ({self.count:,} in all)" if self.count > MOST_EXAMPLES else ""
        return ", ".join(self.examples) + more


class LeftOut(dict[str, Names]):
    """Files that are not used, by reason."""

    def add(self, reason: str, name: str, fault: str = "") -> None:
        """Count one file; names that are not UTF-8 are escaped.

        Args:
            reason: why it is not used.
            name: its path; one that is there already counts once.
            fault: what is wrong with it, if the reason does not say it.
        """
        self.setdefault(reason, Names()).files[printable(name)] = fault

    def sentence(self) -> str:
        """What is left out, to be added to a message; empty if there is nothing."""
        return "".join(f"; left out {some.count:,}: {why} ({some})" for why, some in self.items())

    def suspects(self) -> int:
        """Number of files that the user may want to be used."""
        return sum(names.count for reason, names in self.items() if reason in SUSPECT)

    def table(self) -> pd.DataFrame:
        """A row for each file, by reason."""
        rows = [
            (name, f"{reason}: {fault}" if fault else reason)
            for reason, names in sorted(self.items())
            for name, fault in names.files.items()
        ]
        return pd.DataFrame(rows, columns=COLUMNS)


def printable(name: str) -> str:
    """A name as it can be printed: control characters and bytes that are not UTF-8 are escaped."""
    return ascii(name) if is_odd(name) else name


def is_odd(name: str) -> bool:
    """Whether a name has control characters or is not UTF-8; spaces of any kind are no fault."""
    if name.isascii() and name.isprintable():
        return False
    return any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)
