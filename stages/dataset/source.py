"""Interface of all data set readers: a list of images and a function that decodes one image."""

import enum
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from stages.core.repository import in_repository
from stages.dataset.left_out import LeftOut
from stages.dataset.truth import Kind
from stages.settings.errors import DamagedFileError, UserError, raise_faults
from stages.settings.schema_prepare import Prepare


@dataclass(frozen=True)
class Item:
    """One image of the data set.

    Attributes:
        id: unique within its split; determines the order of the packed images.
        source: path of the image, relative to the folder of the data set.
        labels: path of the label map, likewise; None without a label map.
        tile: index of the square tile, for protocols that cut several tiles from one image.
    """

    id: str
    source: str
    labels: str | None = None
    tile: int = 0


@dataclass(frozen=True)
class RawFile:
    """One line of the manifest: name and content hash of a file.

    Attributes:
        name: path relative to the data set, with slashes.
        size_bytes: size of the content.
        sha256: hash of the content.
        modified_ns: modification time; 0 for generated data.
    """

    name: str
    size_bytes: int
    sha256: str
    modified_ns: int = 0


class Remark(enum.IntFlag):
    """What was seen in a file that was read."""

    NONE = 0
    PAGES = 1
    TRANSPARENT = 2
    CONSTANT = 4
    GRAY_PALETTE = 8
    TURNED = 16  # as its EXIF orientation says
    DEEP = 32  # 16 bits per channel


# What a user should know; the number of files follows.
REMARKS = {
    Remark.PAGES: "files with several pages or frames, of which only the first is used",
    Remark.TRANSPARENT: "files with transparent pixels, which are laid over white",
    Remark.CONSTANT: "files of a single color, from which nothing can be learned",
    Remark.GRAY_PALETTE: "palette images whose colors are gray levels, so that these are the class ids and "
    "not the palette indices",
}


@dataclass(frozen=True)
class Decoded:
    """One decoded image at its original size.

    Attributes:
        image: RGB.
        labels: class ids uint8 [rows, columns] of the same size, 255 = ignored; None without a label map.
        files: files that were read, the image first.
        remarks: what was seen in them.
    """

    image: Image.Image
    labels: np.ndarray | None
    files: tuple[RawFile, ...]
    remarks: Remark = Remark.NONE


Decode = Callable[[Item], Decoded]


@dataclass(frozen=True)
class DataSet:
    """Images to pack.

    Attributes:
        train: sorted by id, as is `val`.
        class_names: class names of the label maps; empty without label maps.
        decode: picklable function that reads one item, or raises UserError with all of its faults.
        class_kinds: thing or stuff for each class name; empty if unknown.
        other_files: files of the data set other than images and label maps.
        root: folder of the data set; None for generated data.
        notes: log lines on the lists and rules that selected the images.
        left_out: files below the folder that are not used, by reason.
        hashed: files that were hashed while listing, by name.
        bits: that its images with 16 bits per channel use; None without such images.
        lacks_maps_in: the folder where label maps belong, if there is a classes.txt and none of them is used.
    """

    train: tuple[Item, ...]
    val: tuple[Item, ...]
    class_names: tuple[str, ...]
    decode: Decode
    class_kinds: tuple[Kind, ...] = ()
    other_files: tuple[RawFile, ...] = ()
    root: Path | None = None
    notes: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    hashed: Mapping[str, RawFile] = field(default_factory=dict)
    bits: int | None = None
    lacks_maps_in: str = ""


MOST_BYTES = 1 << 30  # per file; larger images would exceed the pixel limit of Pillow


def read_raw(root: Path, name: str) -> tuple[RawFile, bytes]:
    """Read one file of the data set; return its manifest line and its content.

    Raises:
        OSError: the file cannot be read.
        DamagedFileError: the file is too large.
    """
    with (root / name).open("rb") as opened:
        status = os.fstat(opened.fileno())
        if status.st_size > MOST_BYTES:
            raise DamagedFileError(
                f"has {status.st_size:,} bytes, more than the maximum of {MOST_BYTES:,}; "
                "scale it down or remove it"
            )
        content = opened.read()
    digest = hashlib.sha256(content).hexdigest()
    return RawFile(name, len(content), digest, status.st_mtime_ns), content


def hash_files(files: Iterable[RawFile]) -> str:
    """Return the SHA-256 of the sorted lines `name, size in bytes, sha256`, one per file."""
    lines = sorted({f"{file.name}, {file.size_bytes}, {file.sha256}\n" for file in files})
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_unchanged(root: Path | None, file: RawFile) -> bool:
    """Whether size and modification time of a file are unchanged; always true for generated data."""
    if root is None:
        return True
    try:
        status = os.stat(f"{root}/{file.name}")  # faster than a Path, for a hundred thousand files
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size_bytes, file.modified_ns)


@dataclass
class Findings:
    """Findings collected while listing a data set.

    Attributes:
        faults: user errors, one line each.
        left_out: files that are not used, by reason.
        files: list files and class files that were read.
        notes: log lines.
    """

    faults: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    files: list[RawFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read_text(self, root: Path, name: str) -> str:
        """Read a text file of the data set; if that fails, record a fault and return empty text."""
        try:
            file, content = read_raw(root, name)
            self.files.append(file)
            return content.decode("utf-8-sig")
        except FileNotFoundError:
            self.faults.append(f"{root / name}: not found; add it with one name per line")
        except OSError as error:
            self.faults.append(
                f"{root / name}: cannot be read ({error.strerror}); allow this user to read it"
            )
        except UnicodeDecodeError:
            self.faults.append(f"{root / name}: is not UTF-8 text; save it as UTF-8")
        return ""

    def raise_faults(self) -> None:
        """Raise all collected faults as one error.

        Raises:
            UserError: there is a fault.
        """
        raise_faults(self.faults)


def data_root(settings: Prepare) -> Path:
    """Folder of the data set."""
    return in_repository(settings.path)


def find_reader(settings: Prepare) -> ModuleType:
    """Import the selected reader, and no other.

    A reader is a folder `stages/readers/<name>` with a module of the same name that defines `list_data`.
    """
    return importlib.import_module(f"stages.readers.{settings.reader}.{settings.reader}")


def list_data(settings: Prepare) -> DataSet:
    """List all images of the data set in params.yaml without decoding them.

    Args:
        settings: `prepare` of params.yaml.

    Raises:
        UserError: files are missing or inconsistent; the error lists every fault.
    """
    root = data_root(settings)
    try:
        data: DataSet = find_reader(settings).list_data(root, settings)
    except OSError as error:
        where = error.filename or root
        remedy = "allow this user to read it" if isinstance(error, PermissionError) else "check the disk"
        raise UserError(f"{where}: cannot be read ({error.strerror}); {remedy}") from error
    return data
