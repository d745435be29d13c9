"""Decoding of an image and its label map, with a clear message for every fault."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stages.dataset.label_maps import decode_labels
from stages.dataset.opening import RAW_MODE, has_pages, opened, orientation
from stages.dataset.sixteen_bits import (
    GRAY_MODES,
    is_deep,
    is_deep_color,
    is_white_zero,
    reduce_color,
    reduce_gray,
)
from stages.dataset.source import Decoded, Item, RawFile, Remark, read_raw
from stages.dataset.taxonomy import Taxonomy
from stages.settings.errors import DamagedFileError, UserError

BACKGROUND = (255, 255, 255)  # under transparent pixels, as most viewers show them


def decode_image(content: bytes, *, upright: bool = True, bits: int = 16) -> tuple[Image.Image, Remark]:
    """Decode an image to 8-bit RGB.

    Args:
        content: file content.
        upright: apply the EXIF orientation, as image viewers do; the published protocols ignore it.
        bits: bits of 16-bit channels that the data set uses (`bits_in_use`); their range becomes 0 to 255.

    Raises:
        UserError: one fault, without the name of the file.
    """
    image = opened(content)
    remarks = Remark.PAGES if has_pages(content, image.format) else Remark.NONE
    if image.mode == "F":
        raise UserError("has 32-bit floating-point pixels; save it with 8 or 16 bits per channel")
    if is_deep(image.mode, image.info[RAW_MODE]):
        remarks |= Remark.DEEP
    is_inverted = is_white_zero(image)
    is_turned, turn = orientation(image)
    if bits < 16 and is_deep_color(image.mode, image.info[RAW_MODE]):
        image = reduce_color(content, bits)
    if upright and is_turned:
        remarks |= Remark.TURNED
        image = image if turn is None else image.transpose(turn)
    if image.mode in GRAY_MODES:
        image = reduce_gray(image, bits, is_inverted=is_inverted)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        if np.asarray(layer)[..., 3].min() < 255:
            remarks |= Remark.TRANSPARENT
            layer = Image.alpha_composite(Image.new("RGBA", layer.size, (*BACKGROUND, 255)), layer)
        image = layer
    return image if image.mode == "RGB" else image.convert("RGB"), remarks


@dataclass(frozen=True)
class FileDecoder:
    """Reads one image and its label map, if any.

    Attributes:
        root: folder of the data set.
        taxonomy: taxonomy of the label maps.
        upright: apply the EXIF orientation; label maps of user data match the image as displayed.
        bits: bits of 16-bit channels that the data set uses.
        by_gray: take the gray levels of palette label maps as ids.
    """

    root: Path
    taxonomy: Taxonomy
    upright: bool = True
    bits: int = 16
    by_gray: bool = False

    def __call__(self, item: Item) -> Decoded:
        """Decode an item and report all faults of both files together.

        Raises:
            DamagedFileError: a file cannot be read or decoded, and nothing else is wrong.
            UserError: label map and image do not fit, or the label map has unknown ids.
        """
        faults: list[UserError] = []
        files: list[RawFile] = []
        image, labels, remarks = None, None, Remark.NONE
        try:
            content = self._read(item.source, files)
            image, remarks = decode_image(content, upright=self.upright, bits=self.bits)
        except (UserError, OSError) as error:
            faults.append(_named(item.source, error))
        if item.labels is not None:
            try:
                labels, more = self._decode_labels(item.labels, files)
                remarks |= more
            except (UserError, OSError) as error:
                faults.append(_named(item.labels, error))
        if image is not None and labels is not None and image.size != labels.shape[::-1]:
            faults.append(UserError(_other_size(item, image, labels)))
        if all(isinstance(fault, DamagedFileError) for fault in faults) and faults:
            raise DamagedFileError(*map(str, faults), files=tuple(files))
        if faults:
            raise UserError(*map(str, faults))
        assert image is not None
        return Decoded(image, labels, tuple(files), remarks)

    def _decode_labels(self, name: str, files: list[RawFile]) -> tuple[np.ndarray, Remark]:
        return decode_labels(self._read(name, files), self.taxonomy, by_gray=self.by_gray)

    def _read(self, name: str, files: list[RawFile]) -> bytes:
        file = read_raw(self.root, name)
        files.append(file[0])
        return file[1]


def _named(name: str, error: UserError | OSError) -> UserError:
    """The fault with the name of the file before it."""
    if isinstance(error, OSError):
        return DamagedFileError(f"{name}: cannot be read ({error.strerror})")
    return type(error)(f"{name}: {error}")


def _other_size(item: Item, image: Image.Image, labels: np.ndarray) -> str:
    return (
        f"{item.labels}: is {labels.shape[1]} x {labels.shape[0]} px, but {item.source} is "
        f"{image.width} x {image.height} px as displayed; label maps must match their images"
    )
