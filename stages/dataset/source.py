"""What every reader of raw data offers: a list of images and a function that decodes one of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from stages.dataset.truth import Kind


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
