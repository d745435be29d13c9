"""Images with 16 bits per channel: which of them a data set uses, and their reduction to 8."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from stages.settings.errors import UserError

GRAY_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
SUFFIXES = (".png", ".tif", ".tiff")  # of formats that can have 16 bits per channel
BITS = (8, 10, 12, 14, 16)  # that cameras and microscopes use of 16
LARGEST = 65_535
WHITE_IS_ZERO = (262, 0)  # TIFF tag PhotometricInterpretation and its value


def raw_mode(image: ImageFile.ImageFile) -> str:
    """How the pixels are stored, such as RGB;16B; empty if the format has no such name."""
    if not image.tile:
        return ""
    args = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) else args)


def is_deep_color(mode: str, stored: str) -> bool:
    """Whether an image of this mode and raw mode has several channels of 16 bits, of which Pillow keeps 8."""
    return mode in ("RGB", "RGBA", "RGBX", "LA") and ";16" in stored


def is_deep(mode: str, stored: str) -> bool:
    """Whether an image of this mode and raw mode has 16 bits per channel."""
    return mode in GRAY_MODES or is_deep_color(mode, stored)


def largest_value(path: Path) -> int:
    """The largest value of an image with 16 bits per channel; -1 for any other image."""
    with Image.open(path) as image:
        if not is_deep(image.mode, raw_mode(image)):
            return -1
        if image.mode in GRAY_MODES:
            return int(np.clip(np.asarray(image), 0, LARGEST).max())
        pixels = _deep_color(path.read_bytes())
        return int(pixels[..., : pixels.shape[2] - _has_alpha(pixels)].max())


def is_white_zero(image: Image.Image) -> bool:
    """Whether 0 is white, which Pillow inverts for 8 bits but not for 16."""
    tag, white = WHITE_IS_ZERO
    return image.mode in GRAY_MODES and getattr(image, "tag_v2", {}).get(tag) == white


def reduce_gray(image: Image.Image, bits: int, *, is_inverted: bool) -> Image.Image:
    """Scale gray levels of `bits` bits to 8.

    Raises:
        UserError: a value does not fit into 16 bits.
    """
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > LARGEST):
        raise UserError(
            f"has values from {values.min():,} to {values.max():,}, beyond 0 to {LARGEST:,}; save it with 8 "
            "or 16 bits per channel"
        )
    reduced = _to_eight_bits(values, bits)
    return Image.fromarray(255 - reduced if is_inverted else reduced)


def reduce_color(content: bytes, bits: int) -> Image.Image:
    """Scale colors of `bits` bits per channel to 8.

    Raises:
        UserError: Pillow cannot give the low bytes of this format.
    """
    try:
        pixels = _deep_color(content)
    except (ValueError, OSError) as error:
        raise UserError(
            f"has 16-bit colors of which {bits} bits are used, in a form that Pillow cannot read "
            f"({error}); save it with 8 bits per channel"
        ) from error
    shallow = _to_eight_bits(pixels, bits)
    if _has_alpha(pixels):  # which uses all bits
        shallow[..., -1] = pixels[..., -1] >> 8
    return Image.fromarray(shallow)


def _to_eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    return np.minimum(values.astype(np.uint32) >> (bits - 8), 255).astype(np.uint8)


def _deep_color(content: bytes) -> np.ndarray:
    """Colors or gray with alpha, with 16 bits per channel, uint16 [rows, columns, channels].

    Pillow keeps the high byte of each value. Read in the other byte order, it keeps the low one. Of gray with
    alpha it knows only one order; but its pixels have four bytes, as those of RGBA.
    """
    high, low = Image.open(BytesIO(content)), Image.open(BytesIO(content))
    if raw_mode(high) == "LA;16B":
        high.tile = [tile._replace(args="RGBA") for tile in high.tile]
        values = np.asarray(high).astype(np.uint16)
        return values[..., ::2] << 8 | values[..., 1::2]
    low.tile = [tile._replace(args=_swapped(tile.args)) for tile in low.tile]
    return np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)


def _has_alpha(pixels: np.ndarray) -> bool:
    return pixels.shape[2] % 2 == 0


def _swapped(args: Any) -> Any:
    """Arguments of a tile decoder, with the other byte order in the name of the raw mode."""
    name, *others = args if isinstance(args, tuple) else (args,)
    native, other = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    kind, order = name[:-1], name[-1].replace("N", native)
    swapped = f"{kind}{other if order == native else native}"
    return (swapped, *others) if isinstance(args, tuple) else swapped
