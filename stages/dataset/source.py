"""What every reader of raw data offers: a list of images and a function that decodes one of them."""

from collections.abc import Callable
from dataclasses import dataclass

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
    """

    id: str
    source: str
    labels: str | None = None


@dataclass(frozen=True)
class RawFile:
    """One line of the manifest: a file's name relative to the data set, and what is in it."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Decoded:
    """One image as it is displayed.

    Attributes:
        image: RGB, at its own size.
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
    """

    train: tuple[Item, ...]
    val: tuple[Item, ...]
    class_names: tuple[str, ...]
    decode: Decode
    class_kinds: tuple[Kind, ...] = ()
    other_files: tuple[RawFile, ...] = ()
