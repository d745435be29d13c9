"""The photographs that `segment` is given: files, folders and patterns, as names below one folder."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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
from stages.dataset.own_outputs import JOURNAL, MANIFEST, OwnOutputs
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
    outputs = OwnOutputs()
    folders, files, patterns = _sort(given)
    earlier = [folder for folder in folders if _is_of_earlier_run(folder, out)]
    if files or patterns or len(folders) > len(earlier):  # what a shell makes of photos/* has it too
        folders = [folder for folder in folders if folder not in earlier]
    for folder in folders:
        _check_apart(folder, out)
    named = [(file, _reason(file, outputs)) for file in files]
    matches = [match for pattern in patterns for match in pattern.files(outputs)]
    images = [file for file, reason in named if reason is None]
    images += [path for path, reason, is_match in matches if is_match and reason is None]
    bases = [*folders, *(path.parent for path in images)]
    root = _common(bases or [*(file.parent for file in files), *(pattern.folder for pattern in patterns)])
    if images and root.resolve() == out.resolve():
        raise UserError(f"--out {out}: is the folder of the images; choose another, so that none is replaced")
    for folder in [*earlier, *(path for pattern in patterns for path in pattern.folders(hidden=True))]:
        left_out.add(OWN_OUTPUT if folder in earlier else HIDDEN, f"{_shown(folder, root)}/")
    found = set(_names(named, root, left_out))
    listed = _listed(folders, root, left_out, outputs)
    matched = [(path, reason) for path, reason, is_match in matches if is_match]
    new = [(path, reason) for path, reason in matched if reason is None or _name(path, root) not in found]
    listed.update(_names(new, root, left_out))
    beside = {_name(path, root) for path, reason, is_match in matches if reason is None and not is_match}
    masks = _masks(listed | beside, root, patterns)
    for name in sorted(masks & listed - found):  # what is given by its own name is meant
        left_out.add(MASK, name)
    names = _one_for_each_output(sorted(found | listed - masks), left_out, scores=scores, overlay=overlay)
    if not names:
        suffixes = ", ".join(SUFFIXES)
        raise UserError(f"{' '.join(given)}: has no images ({suffixes}){left_out.sentence()}; {HELP}")
    return Photographs(root, names)


def _common(folders: Iterable[Path]) -> Path:
    """The deepest folder that has all of them."""
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))


def _masks(names: Iterable[str], root: Path, patterns: Iterable[Pattern]) -> set[str]:
    """The images that are label maps of others by their names.

    The folder of a pattern may be above those of all that matches, and its name tells label maps as well.
    """
    below = os.path.relpath(root, _common([root, *(pattern.folder for pattern in patterns)]))
    places = {os.path.normpath(os.path.join(below, name)): name for name in names}
    return {places[place] for place in label_maps_among(sorted(places))}


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


def _name(path: Path, root: Path) -> str:
    return Path(os.path.relpath(os.path.abspath(path), root)).as_posix()


def _shown(path: Path, root: Path) -> str:
    """The name of what is left out, or its path if it is not below the folder of the images."""
    return _name(path, root) if Path(os.path.abspath(path)).is_relative_to(root) else path.as_posix()


def _reason(file: Path, outputs: OwnOutputs) -> str | None:
    """Why a file that is given by its name is not segmented, or None."""
    return OWN_OUTPUT if file.name in outputs.inside(file.parent) else reason_by_suffix(file.suffix.lower())


def _names(judged: Iterable[tuple[Path, str | None]], root: Path, left_out: LeftOut) -> Iterator[str]:
    """Names of the files that are images; the others are left out for their reasons."""
    for path, reason in judged:
        if reason is None:
            yield _name(path, root)
        else:
            left_out.add(reason, _shown(path, root))


def _one_for_each_output(
    names: Iterable[str], left_out: LeftOut, *, scores: bool, overlay: bool
) -> list[str]:
    """The names without those that cannot be written, or would write a file of an earlier one."""
    kept = []
    stems: set[str] = set()
    taken: set[str] = set()
    folders: set[str] = set()  # of the outputs
    for name in names:
        outputs = output_names(name, scores=scores, overlay=overlay)
        above = [folder.as_posix() for folder in PurePosixPath(name).parents]
        if is_odd(name):
            left_out.add(ODD_NAME, name)
        elif any(len(os.path.basename(one).encode()) > LONGEST_NAME for one in outputs):
            left_out.add(LONG_NAME, name)
        elif os.path.splitext(name)[0] in stems:
            left_out.add(SAME_NAME, name)
        elif (taken | folders).intersection(outputs) or taken.intersection(above):
            left_out.add(SAME_OUTPUT, name)
        else:
            stems.add(os.path.splitext(name)[0])
            taken.update(outputs)
            folders.update(above)
            kept.append(name)
    return kept


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
