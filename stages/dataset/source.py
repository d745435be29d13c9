"""What every reader of raw data offers: a list of images and a function that decodes one of them."""

import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from stages.dataset.truth import Kind
from stages.settings.errors import UserError, raise_faults
from stages.settings.schema import Prepare


@dataclass(frozen=True)
class Item:
    """One image of the data set.

    Attributes:
        id: unique within its split; the order of the packed images.
        source: of the image, relative to the data set's folder.
        labels: of its label map, likewise; None where it has none.
        tile: which of the squares side by side it is, where a protocol cuts several from one picture.
    """

    id: str
    source: str
    labels: str | None = None
    tile: int = 0


@dataclass(frozen=True)
class RawFile:
    """One line of the manifest: a file's name relative to the data set, and what is in it.

    Attributes:
        name: with slashes.
        size_bytes: of the content.
        sha256: of the content.
        modified_ns: when it was last written; 0 for what is no file.
    """

    name: str
    size_bytes: int
    sha256: str
    modified_ns: int = 0


@dataclass(frozen=True)
class Decoded:
    """One image at its own size.

    Attributes:
        image: RGB.
        labels: class ids uint8 [rows, columns] of the same size, 255 = ignored; None where there are none.
        files: what was read, the image first.
    """

    image: Image.Image
    labels: np.ndarray | None
    files: tuple[RawFile, ...]


Decode = Callable[[Item], Decoded]


@dataclass(frozen=True)
class DataSet:
    """Images to pack.

    Attributes:
        train: sorted by id, as is `val`.
        class_names: of the label maps; empty where there are none.
        decode: reads one item, raises UserError with all of its faults; can be sent to another process.
        class_kinds: thing or stuff, one for each name; empty where the data set does not say.
        other_files: that belong to the data set beside images and label maps.
        root: its folder; None where nothing is read from files.
        notes: for the log: which lists and rules chose the images.
        skipped: how many files are no part of it, by the reason.
    """

    train: tuple[Item, ...]
    val: tuple[Item, ...]
    class_names: tuple[str, ...]
    decode: Decode
    class_kinds: tuple[Kind, ...] = ()
    other_files: tuple[RawFile, ...] = ()
    root: Path | None = None
    notes: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


MOST_BYTES = 1 << 30  # of one file: more is no picture that Pillow's limit of pixels would let pass
MOST_NAMES = 10  # that one message lists


def read_raw(root: Path, name: str) -> tuple[RawFile, bytes]:
    """One file of the data set: its line of the manifest, and its content.

    Raises:
        OSError: it cannot be read.
        UserError: it is too large to be a picture.
    """
    with (root / name).open("rb") as opened:
        status = os.fstat(opened.fileno())
        if status.st_size > MOST_BYTES:
            raise UserError(
                f"has {status.st_size:,} bytes, more than {MOST_BYTES:,}, the most that a picture may have; "
                "scale it down or remove it"
            )
        content = opened.read()
    digest = hashlib.sha256(content).hexdigest()
    return RawFile(name, len(content), digest, status.st_mtime_ns), content


def is_unchanged(root: Path | None, file: RawFile) -> bool:
    """Whether a file has the size and the time of when it was read; made data has no files."""
    if root is None:
        return True
    try:
        status = (root / file.name).stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size_bytes, file.modified_ns)


def walk(folder: Path) -> Iterator[Path]:
    """Files below `folder`, sorted within each folder, through links, hidden ones included."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back to a folder above itself
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names))


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


def list_data(settings: Prepare) -> DataSet:
    """Every image of the data set that params.yaml names, by name; none is opened.

    A reader is a folder `stages/readers/<name>` whose module of the same name has a function `list_data`;
    only the one in use is imported.

    Args:
        settings: `prepare` of params.yaml.

    Raises:
        UserError: everything that is missing or contradictory.
    """
    root = Path(os.environ.get("DVC_ROOT", ".")) / settings.path
    reader = importlib.import_module(f"stages.readers.{settings.reader}.{settings.reader}")
    data: DataSet = reader.list_data(root, settings)
    return data
