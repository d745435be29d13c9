"""Lists the images below a folder; everything else is counted under its reason, with names.

`prepare` and `segment` list with the same rules.
"""

import os
import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from stages.dataset.left_out import (
    BROKEN_LINK,
    HEIC,
    HIDDEN,
    LOOP,
    MASK,
    NO_ENTRY,
    NO_FILE,
    NO_PICTURE,
    OTHER_FORMAT,
    OWN_OUTPUT,
    REPEAT,
    UNREADABLE,
    VIDEO,
    LeftOut,
)
from stages.dataset.own_outputs import JOURNAL, MANIFEST, OwnOutputs

# Of images that are read.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff")
HEIC_SUFFIXES = (".heic", ".heif")
# Suffixes of other pictures that are not read; all other files are no pictures.
OTHER_PICTURES = {
    ".gif", ".jp2", ".j2k", ".jxl", ".pgm", ".ppm", ".pbm", ".pnm", ".tga", ".exr",
    ".hdr", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".dcm", ".nii",
    ".ico", ".eps", ".pdf",
}  # fmt: skip
VIDEOS = {
    ".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm", ".wmv", ".mpg", ".mpeg", ".3gp", ".mts", ".m2ts",
}  # fmt: skip
# Folders that file managers, network drives and archives make.
SYSTEM_FOLDERS = {
    "@eaDir", "@Recycle", "#recycle", "#snapshot", ".thumbnails", "__MACOSX", "$RECYCLE.BIN", "lost+found",
    "System Volume Information",
}  # fmt: skip
# Words in the names of label maps that annotation tools write beside their images: x.jpg and x_mask.png.
MASK_WORDS = (
    "mask", "masks", "seg", "segmentation", "label", "labels", "gt", "instance", "instances", "semantic",
)  # fmt: skip
MASK_NAME = re.compile(
    rf"(?P<base>.+)[-_.](?:{'|'.join(MASK_WORDS)})(?:[-_.]?\d+)?|(?:{'|'.join(MASK_WORDS)})[-_.](?P<rest>.+)"
)


def walk(
    folder: Path, left_out: LeftOut, base: Path, apart: Sequence[str] = ()
) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder once, with the sorted names of its files.

    Links to folders are followed after all folders, so that what is there under several names has its own.

    Args:
        folder: where to start.
        left_out: takes what is hidden, of the system or unreadable, broken links, other names of folders.
        base: names in `left_out` are relative to it.
        apart: folders below `folder` that come first, each by itself: what they link to has its name there.
    """
    tops = tuple(os.path.join(folder, name) for name in apart)
    known: set[str] = set()
    for top in tops:
        if os.path.isdir(top) and not _is_above(top):
            inner = _Walk(left_out, base)
            yield from inner.start(top)
            known |= inner.entered
    yield from _Walk(left_out, base, frozenset(known), tops).start(str(folder))


class _Walk:
    """One walk.

    Args:
        left_out: see `walk`.
        base: likewise.
        known: real paths of folders that were listed by another walk; they are not entered.
        tops: where the other walks started.
    """

    def __init__(
        self, left_out: LeftOut, base: Path, known: frozenset[str] = frozenset(), tops: Sequence[str] = ()
    ) -> None:
        self.entered = set(known)  # real paths
        self._left_out, self._base, self._known, self._tops = left_out, base, known, tops
        self._links: deque[str] = deque()

    def start(self, folder: str) -> Iterator[tuple[Path, list[str]]]:
        """Walk a folder, then the links to folders in it, then those in these."""
        self.entered.add(os.path.realpath(folder))
        yield from self._below(folder)
        while self._links:
            if self._enters(link := self._links.popleft()):
                yield from self._below(link)

    def _below(self, top: str) -> Iterator[tuple[Path, list[str]]]:
        for parent, folders, names in os.walk(top, onerror=self._unreadable):
            try:
                os.stat(os.path.join(parent, "."))
            except OSError as error:  # it may be listed, and not entered
                self._unreadable(error)
                folders.clear()
                continue
            folders[:] = [name for name in sorted(folders) if self._takes_folder(parent, name)]
            yield Path(parent), [name for name in sorted(names) if self._takes_file(parent, name)]

    def _takes_folder(self, parent: str, name: str) -> bool:
        path = os.path.join(parent, name)
        if is_hidden(name):
            self._leave_out(HIDDEN, path, "/")
        elif os.path.islink(path):
            self._links.append(path)
        else:
            return self._enters(path)
        return False

    def _takes_file(self, parent: str, name: str) -> bool:
        path = os.path.join(parent, name)
        if name.startswith("."):
            self._leave_out(HIDDEN, path)
        elif os.path.isfile(path):
            return True
        else:
            self._leave_out(BROKEN_LINK if os.path.islink(path) else NO_FILE, path)
        return False

    def _enters(self, path: str) -> bool:
        """Whether a folder is new; what is not is left out by its name, unless another walk is to have it."""
        real, is_link = os.path.realpath(path), os.path.islink(path)
        if is_link and _is_above(path):
            self._leave_out(LOOP, path, "/")
        elif real not in self.entered:
            self.entered.add(real)
            return True
        elif (is_link or real not in self._known) and not any(
            f"{top}{os.sep}".startswith(f"{path}{os.sep}") for top in self._tops
        ):
            self._leave_out(REPEAT, path, "/")
        return False

    def _unreadable(self, error: OSError) -> None:
        self._leave_out(NO_ENTRY if isinstance(error, PermissionError) else UNREADABLE, error.filename)

    def _leave_out(self, reason: str, path: str, end: str = "") -> None:
        self._left_out.add(reason, os.path.relpath(path, self._base) + end)


def is_hidden(folder: str) -> bool:
    """Whether a folder, by its name, is hidden or of the system."""
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def _is_above(path: str) -> bool:
    """Whether a link leads to a folder that it lies in."""
    real, place = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
    return os.path.commonpath([real, place]) == real


def list_images(
    folder: Path,
    left_out: LeftOut,
    reserved: Collection[str] = (),
    apart: Sequence[str] = (),
    outputs: OwnOutputs | None = None,
) -> list[str]:
    """The images below `folder`, relative to it, with slashes, sorted per folder.

    Args:
        folder: folder of images.
        left_out: takes everything that is no image, with its reason.
        reserved: files that are neither images nor left out.
        apart: see `walk`.
        outputs: of `segment`, if more is listed than this folder; None for this listing alone.
    """
    images, outputs = [], outputs or OwnOutputs()
    for parent, names in walk(folder, left_out, folder, apart):
        below = parent.relative_to(folder).as_posix()
        for name, reason in judge(parent, names, outputs):
            whole = name if below == "." else f"{below}/{name}"
            if whole in reserved:
                continue
            if reason is None:
                images.append(whole)
            else:
                left_out.add(reason, whole)
    return images


def judge(folder: Path, names: Sequence[str], outputs: OwnOutputs) -> Iterator[tuple[str, str | None]]:
    """Yield files of a folder, each with the reason why it is not used as an image, or None.

    Args:
        folder: where they are.
        names: all files of the folder, because a label map is known by the image beside it.
        outputs: of `segment`.
    """
    own = {*outputs.inside(folder), MANIFEST, JOURNAL}
    parts = [os.path.splitext(name) for name in names]
    pictures = {stem.lower() for stem, suffix in parts if suffix.lower() in SUFFIXES}
    for name, (stem, suffix) in zip(names, parts, strict=True):
        yield name, OWN_OUTPUT if name in own else _reason(stem, suffix.lower(), pictures)


def _reason(stem: str, suffix: str, pictures: set[str]) -> str | None:
    """Why a file is not used as an image, or None; `pictures` are the stems of its folder in lower case."""
    if reason := reason_by_suffix(suffix):
        return reason
    return None if named_images(stem.lower()).isdisjoint(pictures) else MASK


def reason_by_suffix(suffix: str) -> str | None:
    """Why a file with a suffix, in lower case, is not used as an image, or None."""
    if suffix in SUFFIXES:
        return None
    if suffix in HEIC_SUFFIXES:
        return HEIC
    if suffix in VIDEOS:
        return VIDEO
    return OTHER_FORMAT if suffix in OTHER_PICTURES else NO_PICTURE


def named_images(stem: str) -> set[str]:
    """Stems of the images that the name of a label map tells: x for x_mask and for x.jpg_mask.

    Args:
        stem: name without its suffix, in lower case.
    """
    found = MASK_NAME.fullmatch(stem)
    if found is None:
        return set()
    base = found["base"] or found["rest"]
    return {base, os.path.splitext(base)[0]}
