"""The photographs that `segment` is given: files, folders and patterns, as names below one folder."""

import glob
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core.artefacts import LONGEST_NAME
from stages.dataset.label_map_folders import label_maps_among
from stages.dataset.left_out import (
    HIDDEN,
    LONG_NAME,
    MASK,
    ODD_NAME,
    OWN_OUTPUT,
    SAME_NAME,
    SAME_OUTPUT,
    LeftOut,
    is_odd,
)
from stages.dataset.listing import SUFFIXES, list_images, reason_by_suffix
from stages.dataset.own_outputs import OwnOutputs
from stages.settings.errors import UserError, raise_faults
from stages.tools.segmenting.label_files import output_names
from stages.tools.segmenting.patterns import Pattern

HELP = "pass images, folders of images, or patterns such as 'photos/**/*.jpg'"


@dataclass(frozen=True)
class Photographs:
    """Images to segment.

    Attributes:
        root: deepest folder that has all of them; outputs have their paths below it.
        names: paths relative to `root`, with slashes, sorted; no two have an output of one name.
    """

    root: Path
    names: list[str]


def find_photographs(
    given: Sequence[str], out: Path, left_out: LeftOut, *, scores: bool, overlay: bool = True
) -> Photographs:
    """List the images.

    Args:
        given: files, folders and patterns.
        out: output folder.
        left_out: takes everything that is not segmented, with its reason.
        scores: whether maps of confidence are written.
        overlay: whether overlays are written.

    Raises:
        UserError: something given is not there, there are no images, or `out` is not apart from a folder.
    """
    folders, files, patterns = _sort(given)
    for folder in folders:
        _check_apart(folder, out)
    alone = [*files, *(path for pattern in patterns for path in pattern.matches.difference(folders))]
    bases = [*folders, *(path.parent for path in alone)]
    root = Path(os.path.commonpath([os.path.abspath(base) for base in bases]))
    if alone and root.resolve() == out.resolve():
        raise UserError(f"--out {out}: is the folder of the images; choose another, so that none is replaced")
    outputs = OwnOutputs()
    found = set(_files(files, root, left_out, outputs))
    listed = _listed(folders, root, left_out, outputs)
    matched, beside = _matched(patterns, root, found, left_out, outputs)
    listed |= matched
    # The folder of a pattern may be above those of all that matches, and their names tell label maps as well.
    top = os.path.commonpath([root, *(os.path.abspath(pattern.folder) for pattern in patterns)])
    below = os.path.relpath(root, top)
    places = {os.path.normpath(os.path.join(below, name)): name for name in listed | beside}
    masks = {places[place] for place in label_maps_among(sorted(places))}
    for name in sorted(masks & listed - found):  # what is given by its own name is meant
        left_out.add(MASK, name)
    names = _one_for_each_output(sorted(found | listed - masks), left_out, scores=scores, overlay=overlay)
    if not names:
        suffixes = ", ".join(SUFFIXES)
        raise UserError(f"{' '.join(given)}: has no images ({suffixes}){left_out.sentence()}; {HELP}")
    return Photographs(root, names)


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


def _listed(folders: Iterable[Path], root: Path, left_out: LeftOut, outputs: OwnOutputs) -> set[str]:
    """Names of the images in folders."""
    listed: set[str] = set()
    for folder in folders:
        inner, below = LeftOut(), _name(folder, root)
        prefix = "" if below == "." else f"{below}/"
        listed |= {prefix + name for name in list_images(folder, inner, outputs=outputs)}
        for reason, some in inner.items():
            for name in some.files:
                left_out.add(reason, prefix + name)
    return listed


def _matched(
    patterns: Iterable[Pattern], root: Path, found: Collection[str], left_out: LeftOut, outputs: OwnOutputs
) -> tuple[set[str], set[str]]:
    """Names of the images that match, and of those beside them; those `found` are given by their names."""
    matched: set[str] = set()
    beside: set[str] = set()
    for pattern in patterns:
        for folder in pattern.folders(hidden=True):
            left_out.add(HIDDEN, f"{_name(folder, root)}/")
        for path, reason, is_match in pattern.files(outputs):
            name = _name(path, root)
            if reason is None:
                (matched if is_match else beside).add(name)
            elif is_match and name not in found:
                left_out.add(reason, name)
    return matched, beside


def _name(path: Path, root: Path) -> str:
    return Path(os.path.relpath(os.path.abspath(path), root)).as_posix()


def _files(files: Iterable[Path], root: Path, left_out: LeftOut, outputs: OwnOutputs) -> list[str]:
    """Names of the files that are images, by their suffix."""
    names = []
    for file in files:
        name = _name(file, root)
        if file.name in outputs.inside(file.parent):
            left_out.add(OWN_OUTPUT, name)
        elif reason := reason_by_suffix(file.suffix.lower()):
            left_out.add(reason, name)
        else:
            names.append(name)
    return names


def _one_for_each_output(
    names: Iterable[str], left_out: LeftOut, *, scores: bool, overlay: bool
) -> list[str]:
    """The names without those that cannot be written, or would write a file of an earlier one."""
    kept = []
    stems: set[str] = set()
    taken: set[str] = set()
    for name in names:
        outputs = output_names(name, scores=scores, overlay=overlay)
        if is_odd(name):
            left_out.add(ODD_NAME, name)
        elif any(len(os.path.basename(one).encode()) > LONGEST_NAME for one in outputs):
            left_out.add(LONG_NAME, name)
        elif os.path.splitext(name)[0] in stems:
            left_out.add(SAME_NAME, name)
        elif taken.intersection(outputs):
            left_out.add(SAME_OUTPUT, name)
        else:
            stems.add(os.path.splitext(name)[0])
            taken.update(outputs)
            kept.append(name)
    return kept


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
