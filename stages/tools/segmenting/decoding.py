"""Decoding of one photograph, and the bits of 16-bit channels that become 8."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from stages.core.artefacts import read_metrics
from stages.dataset.decode import decode_image
from stages.dataset.sixteen_bits import BITS, is_deep
from stages.dataset.source import RawFile, Remark, read_raw
from stages.dataset.summary import BITS_IN_USE
from stages.dataset.survey import bits_in_use, describe_bits
from stages.runtime.progress import warn
from stages.settings.errors import UserError
from stages.tools.segmenting.photographs import Photographs

ORIENTATION = 0x0112  # EXIF tag; 1: as stored
SUMMARY = Path("metrics/prepare.json")  # beside the folder of the model


class Photograph(NamedTuple):
    """A decoded photograph.

    Attributes:
        file: the file as it was when read.
        pixels: RGB uint8 [H, W, 3], as displayed.
        remarks: what the user should know of it.
        is_turned: whether its EXIF orientation turned it.
        is_deep: whether it has 16 bits per channel.
    """

    file: RawFile
    pixels: np.ndarray
    remarks: Remark
    is_turned: bool
    is_deep: bool


def choose_bits(photographs: Photographs, model: Path, log: Callable[[str], None], *, is_quiet: bool) -> int:
    """Bits of 16-bit channels that become 8, as in training; without such images all.

    Args:
        photographs: images to segment.
        model: folder of the model; beside it may be what `prepare` has said of the training images.
        log: takes what is done.
        is_quiet: show no progress.
    """
    found = bits_in_use(photographs.root, photographs.names, is_quiet=is_quiet)
    if found is None:
        return max(BITS)
    path = model.absolute().parent / SUMMARY
    trained = read_metrics(path).get("prepare", {}).get(BITS_IN_USE, 0) if path.is_file() else 0
    if found > trained > 0:
        warn(
            "segment",
            f"images use {found} bits of 16, and those of training {trained} ({path}): these are darker than "
            "what the model has learned",
        )
    bits = max(found, trained)
    log(describe_bits(bits) + (f", as {path} says of the training images" if bits == trained else ""))
    return bits


def open_photograph(root: Path, name: str, bits: int) -> Photograph:
    """Decode an image, with the bits of `choose_bits`.

    Raises:
        UserError: it cannot be read or decoded.
    """
    try:
        file, content = read_raw(root, name)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from error
    picture, remarks = decode_image(content, bits=bits)
    with Image.open(BytesIO(content)) as image:
        has_deep = is_deep(image)  # first, because to read the EXIF block of a PNG decodes it
        return Photograph(file, np.array(picture), remarks, _is_turned(image), has_deep)


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # a damaged EXIF block, which the decoder ignores as well
        return False
