"""Patterns such as photos/**/*.jpg: what matches is used by the rules for the files of a folder."""

import glob
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stages.dataset.left_out import HIDDEN
from stages.dataset.listing import is_hidden, judge
from stages.dataset.own_outputs import OwnOutputs


class JudgedFile(NamedTuple):
    """A file, and what is to be done with it.

    Attributes:
        path: where it is.
        reason: why it is not used as an image, or None.
        is_match: whether it is meant: it is given by its name or matches a pattern, and does not just lie
            beside what matches.
    """

    path: Path
    reason: str | None
    is_match: bool = True

    @property
    def is_image(self) -> bool:
        """Whether it is one to segment."""
        return self.is_match and self.reason is None


@dataclass(frozen=True)
class Pattern:
    """A pattern and what it matches.

    Attributes:
        folder: its beginning without wildcards. The rules hold below it; it was given by its name.
        matches: files and folders.
        around: all that is in the folders where it looks, for label maps are known by images beside them.
    """

    folder: Path
    matches: frozenset[Path]
    around: frozenset[Path]

    @classmethod
    def expand(cls, text: str) -> "Pattern":
        """Find what matches."""
        named = itertools.takewhile(lambda part: not glob.has_magic(part), Path(text).parts)
        return cls(Path(*named), _expanded(text), _expanded(os.path.join(os.path.dirname(text), "*")))

    def folders(self, *, hidden: bool) -> list[Path]:
        """The folders that match: those that are hidden or of the system, or all others."""
        return [path for path in sorted(self.matches) if path.is_dir() and self._hides(path) == hidden]

    def files(self, outputs: OwnOutputs) -> Iterator[JudgedFile]:
        """Yield each file that matches or lies beside what does.

        Args:
            outputs: of `segment`.
        """
        names: dict[Path, list[str]] = defaultdict(list)
        for path in sorted(self.matches | self.around):
            if not path.is_dir():
                names[path.parent].append(path.name)
        for folder, inside in names.items():
            hides = self._hides(folder)
            for name, reason in judge(folder, inside, outputs):
                path = folder / name
                yield JudgedFile(path, HIDDEN if hides else reason, path in self.matches)

    def _hides(self, folder: Path) -> bool:
        return any(is_hidden(part) for part in folder.relative_to(self.folder).parts)


def _expanded(text: str) -> frozenset[Path]:
    return frozenset(map(Path, glob.glob(text, recursive=True)))
