"""Pictures and label maps at working size, to the pixel as the published protocols make them.

own          of one's own: turned as EXIF asks (by the reader), then as picie
picie        shorter side resized bilinearly, labels by the nearest pixel, then the centre square
picie_long   the same without the crop: squares side by side cover the whole width
stego        as picie, but the image by the nearest pixel too
"""

from typing import Literal

import numpy as np
from PIL import Image

from stages.settings.errors import UserError

Protocol = Literal["own", "picie", "picie_long", "stego"]
FILTERS = {
    "own": Image.Resampling.BILINEAR,
    "picie": Image.Resampling.BILINEAR,
    "picie_long": Image.Resampling.BILINEAR,
    "stego": Image.Resampling.NEAREST,
}


def square_image(image: Image.Image, side_px: int, protocol: Protocol = "own", tile: int = 0) -> np.ndarray:
    """RGB uint8 [side_px, side_px, 3]; bilinear resizing antialiases where it shrinks.

    Raises:
        UserError: the image is so narrow that the resized one would be gigantic, or has no such tile.
    """
    return _square(image, side_px, FILTERS[protocol], protocol, tile)


def square_labels(labels: np.ndarray, side_px: int, protocol: Protocol = "own", tile: int = 0) -> np.ndarray:
    """Class ids uint8 [side_px, side_px], each from its nearest pixel.

    Raises:
        UserError: as `square_image`.
    """
    return _square(Image.fromarray(labels), side_px, Image.Resampling.NEAREST, protocol, tile)


def resized_size(width: int, height: int, side_px: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `side_px`, and the longer rounded down as in torchvision."""
    if width <= height:
        return side_px, side_px * height // width
    return side_px * width // height, side_px


def _square(
    image: Image.Image, side_px: int, filter_: Image.Resampling, protocol: Protocol, tile: int
) -> np.ndarray:
    width, height = resized_size(*image.size, side_px)
    if width * height > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise UserError(
            f"is {image.width} x {image.height} px, too narrow to bring its shorter side to {side_px} px; "
            "crop or remove it"
        )
    # The rounding, to even at .5, is that of PiCIE and of torchvision's centre crop.
    left, top = round((width - side_px) / 2.0), round((height - side_px) / 2.0)
    if protocol == "picie_long":
        left = tile * side_px
        if height != side_px or left + side_px > width:
            raise UserError(
                f"is {image.width} x {image.height} px, but prepare.protocol: picie_long cuts two squares "
                "side by side; it needs images twice as wide as high"
            )
    resized = image.resize((width, height), filter_)
    return np.asarray(resized.crop((left, top, left + side_px, top + side_px)))
