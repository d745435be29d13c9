"""Images and label maps in files: how every reader of a folder decodes them, and how it looks for them."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stages.dataset.decode import decode_image, decode_labels
from stages.dataset.source import Decoded, Item, RawFile
from stages.dataset.taxonomy import Taxonomy
from stages.runtime.errors import UserError, raise_faults

MOST_BYTES = 1 << 30  # of one file: more is no picture that Pillow's limit of pixels would let pass


@dataclass(frozen=True)
class FileDecoder:
    """Reads one image and, where it has one, its label map.

    Attributes:
        root: of the data set.
        taxonomy: of the label maps.
        upright: turn images as their EXIF block asks; the label maps of own data are drawn on what is seen.
    """

    root: Path
    taxonomy: Taxonomy
    upright: bool = True

    def __call__(self, item: Item) -> Decoded:
        """Decode, with all faults of both files.

        Raises:
            UserError: a file cannot be read, or the two differ in size.
        """
        faults: list[str] = []
        files: list[RawFile] = []
        image, labels = None, None
        try:
            image = decode_image(self._read(item.source, files), upright=self.upright)
        except (UserError, OSError) as error:
            faults.append(f"{item.source}: {_reason(error)}")
        if item.labels is not None:
            try:
                labels = decode_labels(self._read(item.labels, files), self.taxonomy)
            except (UserError, OSError) as error:
                faults.append(f"{item.labels}: {_reason(error)}")
        if image is not None and labels is not None and image.size != labels.shape[::-1]:
            faults.append(_other_size(item, image, labels))
        raise_faults(faults)
        assert image is not None
        return Decoded(image, labels, tuple(files))

    def _read(self, name: str, files: list[RawFile]) -> bytes:
        file = read_raw(self.root, name)
        files.append(file[0])
        return file[1]


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


def _reason(error: UserError | OSError) -> str:
    return str(error) if isinstance(error, UserError) else f"cannot be read ({error.strerror})"


def _other_size(item: Item, image: Image.Image, labels: np.ndarray) -> str:
    return (
        f"{item.labels}: is {labels.shape[1]} x {labels.shape[0]} px, but {item.source} is "
        f"{image.width} x {image.height} px as displayed; label maps must match their images"
    )
