"""The photographs that `segment` is given, as names below one folder."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.core.atomic import LONGEST_NAME
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
from stages.dataset.listing import SUFFIXES, list_images
from stages.dataset.own_outputs import OwnOutputs
from stages.settings.errors import UserError
from stages.tools.segmenting.given_paths import HELP, Given, read_given
from stages.tools.segmenting.label_files import output_names
from stages.tools.segmenting.patterns import JudgedFile, Pattern


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
    read = read_given(given, out, outputs)
    root = _common_root(read, out)
    chosen = _chosen(read, root, left_out, outputs)
    names = _one_for_each_output(chosen, left_out, scores=scores, overlay=overlay)
    if not names:
        suffixes = ", ".join(SUFFIXES)
        raise UserError(f"{' '.join(given)}: has no images ({suffixes}){left_out.sentence()}; {HELP}")
    return Photographs(root, names)


def _common_root(given: Given, out: Path) -> Path:
    """The deepest folder that has all images, or all that is given if there are none.

    Raises:
        UserError: it is the output folder, and has images.
    """
    images = [one for one in (*given.files, *given.matches) if one.is_image]
    folders = [*given.folders, *(one.path.parent for one in images)]
    elsewhere = [*(one.path.parent for one in given.files), *(pattern.folder for pattern in given.patterns)]
    root = _common(folders or elsewhere)
    if images and root.resolve() == out.resolve():
        raise UserError(f"--out {out}: is the folder of the images; choose another, so that none is replaced")
    return root


def _chosen(given: Given, root: Path, left_out: LeftOut, outputs: OwnOutputs) -> list[str]:
    """Names of the images, sorted; all else is left out for its reason."""
    hidden = [folder for pattern in given.patterns for folder in pattern.folders(hidden=True)]
    for folder in [*given.earlier, *hidden]:
        left_out.add(OWN_OUTPUT if folder in given.earlier else HIDDEN, f"{_shown(folder, root)}/")
    named = set(_names(given.files, root, left_out))
    listed = _listed(given.folders, root, left_out, outputs)
    matched = (one for one in given.matches if one.is_match)
    new = [one for one in matched if one.reason is None or _name(one.path, root) not in named]
    listed.update(_names(new, root, left_out))
    beside = {_name(one.path, root) for one in given.matches if one.reason is None and not one.is_match}
    masks = _masks(listed | beside, root, given.patterns)
    for name in sorted(masks & listed - named):  # what is given by its own name is meant
        left_out.add(MASK, name)
    return sorted(named | listed - masks)


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


def _names(judged: Iterable[JudgedFile], root: Path, left_out: LeftOut) -> Iterator[str]:
    """Names of the files that are images; the others are left out for their reasons."""
    for one in judged:
        if one.reason is None:
            yield _name(one.path, root)
        else:
            left_out.add(one.reason, _shown(one.path, root))


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
