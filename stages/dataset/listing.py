"""Lists the images below a folder; everything else is counted under its reason, with names.

`prepare` and `segment` list with the same rules.
"""

import difflib
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from stages.dataset.own_outputs import JOURNAL, MANIFEST, OwnOutputs

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # of images that are read
# Suffixes of pictures that are not read; all other files are no pictures.
OTHER_PICTURES = {
    ".heic", ".heif", ".avif", ".gif", ".jp2", ".j2k", ".jxl", ".pgm", ".ppm", ".pbm", ".pnm", ".tga", ".exr",
    ".hdr", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".dcm", ".nii",
    ".ico", ".eps", ".pdf", ".mp4", ".mov", ".avi",
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

# Reasons. Those in SUSPECT may be pictures that the user wants; a large share of them is a warning.
HIDDEN = "hidden, or made by the system"
MASK = "label map among the images, by its name"
OWN_OUTPUT = "written by segment"
NO_PICTURE = "no picture by its suffix"
OTHER_FORMAT = "picture of a format that is not read; convert it to PNG or JPEG"
BROKEN_LINK = "link to nothing"
NO_ENTRY = "folder that this user may not read"
UNREADABLE = "folder that cannot be read"
LOOP = "link to a folder above it"
NO_FILE = "neither a file nor a folder"
SAME_NAME = "same name as another image but for the suffix"
SAME_OUTPUT = "its label map would replace a file of another image; rename it"
ODD_NAME = "name with control characters or not UTF-8; rename it"
LONG_NAME = "name too long for those of its outputs; shorten it"
ELSEWHERE = "image outside of the folders that are read"
UNLISTED = "in neither list"
SPARE_LABELS = "label map of no validation image"
TRAIN_LABELS = "label map of a training image, never read"
BAD = "damaged"
SUSPECT = (
    OTHER_FORMAT, BROKEN_LINK, NO_ENTRY, UNREADABLE, MASK, SAME_NAME, ELSEWHERE, UNLISTED, SPARE_LABELS, BAD,
)  # fmt: skip

MOST_EXAMPLES = 3


@dataclass
class Names:
    """How many files share a reason, and the first of their names."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = f", ... ({self.count:,} in all)" if self.count > len(self.examples) else ""
        return ", ".join(self.examples) + more


class LeftOut(dict[str, Names]):
    """Files that are not used, by reason."""

    def add(self, reason: str, name: str) -> None:
        """Count one file; names that are not UTF-8 are escaped."""
        names = self.setdefault(reason, Names())
        names.count += 1
        if len(names.examples) < MOST_EXAMPLES:
            names.examples.append(printable(name))

    def suspects(self) -> int:
        """Number of files that the user may want to be used."""
        return sum(names.count for reason, names in self.items() if reason in SUSPECT)


def printable(name: str) -> str:
    """A name as it can be printed: control characters and bytes that are not UTF-8 are escaped."""
    return ascii(name) if is_odd(name) else name


def is_odd(name: str) -> bool:
    """Whether a name has control characters or is not UTF-8; spaces of any kind are no fault."""
    if name.isascii() and name.isprintable():
        return False
    return any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)


def normal(name: str) -> str:
    """The composed form of a name: file systems of a Mac store accents decomposed."""
    return unicodedata.normalize("NFC", name)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The two names that are most like `name`, and in what they differ, for a message; empty without any."""
    close = difflib.get_close_matches(name, list(candidates), n=2, cutoff=0.6)
    return (
        "; the nearest are " + " and ".join(f"{one} ({_difference(name, one)})" for one in close)
        if close
        else ""
    )


def _difference(name: str, other: str) -> str:
    one, two = PurePosixPath(name), PurePosixPath(other)
    if name.lower() == other.lower():
        return "other upper and lower case"
    if one.name == two.name:
        return "another folder"
    if one.stem == two.stem:
        return "another suffix"
    return "another name"


def walk(folder: Path, left_out: LeftOut, base: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder with the sorted names of its files; follows links, except to a folder above.

    Args:
        folder: where to start.
        left_out: takes folders that cannot be read or belong to the system, broken links and hidden files.
        base: names in `left_out` are relative to it.
    """

    def unreadable(error: OSError) -> None:
        reason = NO_ENTRY if isinstance(error, PermissionError) else UNREADABLE
        left_out.add(reason, os.path.relpath(error.filename, base))

    above = {str(folder): {os.path.realpath(folder)}}  # real paths from the start to each folder
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        for name in list(folders):
            path = os.path.join(parent, name)
            real = os.path.realpath(path)
            if name.startswith(".") or name in SYSTEM_FOLDERS:
                folders.remove(name)
                left_out.add(HIDDEN, os.path.relpath(path, base) + "/")
            elif real in above[parent]:
                folders.remove(name)
                left_out.add(LOOP, os.path.relpath(path, base) + "/")
            else:
                above[path] = above[parent] | {real}
        folders.sort()
        kept = []
        for name in sorted(names):
            path = os.path.join(parent, name)
            if name.startswith("."):
                left_out.add(HIDDEN, os.path.relpath(path, base))
            elif os.path.isfile(path):
                kept.append(name)
            else:
                reason = BROKEN_LINK if os.path.islink(path) else NO_FILE
                left_out.add(reason, os.path.relpath(path, base))
        yield Path(parent), kept


def list_images(
    folder: Path, left_out: LeftOut, reserved: Collection[str] = (), outputs: OwnOutputs | None = None
) -> list[str]:
    """The images below `folder`, relative to it, with slashes, sorted per folder.

    Args:
        folder: folder of images.
        left_out: takes everything that is no image, with its reason.
        reserved: files that are neither images nor left out.
        outputs: of `segment`, if more is listed than this folder; None for this listing alone.
    """
    images, outputs = [], outputs or OwnOutputs()
    for parent, names in walk(folder, left_out, folder):
        own = outputs.inside(parent)
        parts = [os.path.splitext(name) for name in names]
        pictures = {stem.lower() for stem, suffix in parts if suffix.lower() in SUFFIXES}
        below = parent.relative_to(folder).as_posix()
        is_mask_folder = "/" in below and parent.name.lower() in MASK_WORDS  # images/train/masks
        for name, (stem, suffix) in zip(names, parts, strict=True):
            whole = name if below == "." else f"{below}/{name}"
            if whole in reserved:
                continue
            if name in own or name in (MANIFEST, JOURNAL):
                left_out.add(OWN_OUTPUT, whole)
            elif reason := _reason(stem, suffix.lower(), pictures):
                left_out.add(reason, whole)
            elif is_mask_folder and below.startswith("images/"):
                left_out.add(MASK, whole)
            else:
                images.append(whole)
    return images


def _reason(stem: str, suffix: str, pictures: set[str]) -> str | None:
    """Why a file is not used as an image, or None; `pictures` are the stems of its folder in lower case."""
    if suffix not in SUFFIXES:
        return OTHER_FORMAT if suffix in OTHER_PICTURES else NO_PICTURE
    found = MASK_NAME.fullmatch(stem.lower())
    if found is None:
        return None
    base = found["base"] or found["rest"]
    return MASK if base in pictures or os.path.splitext(base)[0] in pictures else None
