"""What `segment` is given on its command line: files, folders and patterns, with what lies there."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stages.dataset.left_out import OWN_OUTPUT
from stages.dataset.listing import reason_by_suffix
from stages.dataset.own_outputs import JOURNAL, MANIFEST, OwnOutputs
from stages.settings.errors import UserError, raise_faults
from stages.tools.segmenting.patterns import JudgedFile, Pattern

HELP = "pass images, folders of images, or patterns such as 'photos/**/*.jpg'"


class Given(NamedTuple):
    """What is given.

    Attributes:
        folders: of images, with those that match a pattern.
        earlier: the output folder, if it is among what is given; `segment` has written it, or it is empty.
        files: given by their names.
        patterns: given as such.
        matches: what matches the patterns, and what lies beside it.
    """

    folders: list[Path]
    earlier: list[Path]
    files: list[JudgedFile]
    patterns: list[Pattern]
    matches: list[JudgedFile]


def read_given(given: Sequence[str], out: Path, outputs: OwnOutputs) -> Given:
    """What is given, with the files that are there.

    Raises:
        UserError: something is not there, or `out` is not apart from a folder.
    """
    folders, files, patterns = _sort(given)
    earlier = [folder for folder in folders if _is_of_earlier_run(folder, out)]
    if files or patterns or len(folders) > len(earlier):  # what a shell makes of photos/* has it too
        folders = [folder for folder in folders if folder not in earlier]
    for folder in folders:
        _check_apart(folder, out)
    judged = [JudgedFile(file, _reason(file, outputs)) for file in files]
    matches = [match for pattern in patterns for match in pattern.files(outputs)]
    return Given(folders, earlier, judged, patterns, matches)


def _sort(given: Sequence[str]) -> tuple[list[Path], list[Path], list[Pattern]]:
    """The folders, those that match a pattern among them, the files and the patterns that are given.

    Raises:
        UserError: something is not there; the error lists everything.
    """
    folders: list[Path] = []
    files: list[Path] = []
    patterns: list[Pattern] = []
    faults = []
    for one in given:
        if os.path.lexists(one):
            (folders if os.path.isdir(one) else files).append(Path(one))
        elif (pattern := Pattern.expand(one)).matches:
            patterns.append(pattern)
            folders += pattern.folders(hidden=False)
        else:
            what = "matches no file" if glob.has_magic(one) else "no such file or folder"
            faults.append(f"{one}: {what}; {HELP}")
    raise_faults(faults)
    return folders, files, patterns


def _is_of_earlier_run(folder: Path, out: Path) -> bool:
    """Whether a folder is the output folder, and segment has written to it, or nobody has."""
    if folder.resolve() != out.resolve():
        return False
    return any((folder / name).is_file() for name in (MANIFEST, JOURNAL)) or not os.listdir(folder)


def _check_apart(images: Path, out: Path) -> None:
    """Refuse an output folder that is, holds, or lies in a folder of images.

    Raises:
        UserError: outputs could replace images, or be taken for images by the next run.
    """
    given, target = images.resolve(), out.resolve()
    if given == target or given in target.parents or target in given.parents:
        how = "is" if given == target else "lies in" if given in target.parents else "holds"
        raise UserError(
            f"--out {out}: {how} the folder of the images, {images}; choose a folder apart from it, so that "
            "no image is replaced and no output is taken for an image"
        )


def _reason(file: Path, outputs: OwnOutputs) -> str | None:
    """Why a file that is given by its name is not segmented, or None."""
    return OWN_OUTPUT if file.name in outputs.inside(file.parent) else reason_by_suffix(file.suffix.lower())
