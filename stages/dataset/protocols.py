"""Resizing of images and label maps to working size, pixel-exact with the published protocols.

own          user data: the reader applies the EXIF orientation, then as picie
picie        shorter side resized (images bilinear, label maps nearest neighbor), then center crop
picie_long   resized as picie, then split into adjacent square tiles that cover the whole width, for training
             too; PiCIE's --long_image trains on center squares, and scores whole images of twice the width
stego        as picie, but images are also resized by nearest neighbor
"""

from typing import Literal

import numpy as np
from PIL import Image

from stages.settings.errors import DamagedFileError, UserError

Protocol = Literal["own", "picie", "picie_long", "stego"]
FILTERS = {
    "own": Image.Resampling.BILINEAR,
    "picie": Image.Resampling.BILINEAR,
    "picie_long": Image.Resampling.BILINEAR,
    "stego": Image.Resampling.NEAREST,
}


def square_image(image: Image.Image, side_px: int, protocol: Protocol = "own", tile: int = 0) -> np.ndarray:
    """Resize and crop an image to RGB uint8 [side_px, side_px, 3]; bilinear downscaling antialiases.

    Raises:
        DamagedFileError: the image is so narrow that it would exceed Pillow's limit, once resized.
        UserError: it has no such tile.
    """
    return _square(image, side_px, FILTERS[protocol], protocol, tile)


def square_labels(labels: np.ndarray, side_px: int, protocol: Protocol = "own", tile: int = 0) -> np.ndarray:
    """Resize and crop class ids to uint8 [side_px, side_px] by nearest neighbor.

    Raises:
        DamagedFileError: see `square_image`.
        UserError: likewise.
    """
    return _square(Image.fromarray(labels), side_px, Image.Resampling.NEAREST, protocol, tile)


def resized_size(width: int, height: int, side_px: int) -> tuple[int, int]:
    """Return (width, height) with shorter side `side_px`; the longer side is floored as in torchvision."""
    if width <= height:
        return side_px, side_px * height // width
    return side_px * width // height, side_px


def unused_share(width: int, height: int, protocol: Protocol) -> float:
    """Return the share of an image, in [0, 1), that lies outside of its square, or of its tiles."""
    return 0.0 if protocol == "picie_long" else 1 - min(width, height) / max(width, height)


def _square(
    image: Image.Image, side_px: int, filter_: Image.Resampling, protocol: Protocol, tile: int
) -> np.ndarray:
    width, height = resized_size(*image.size, side_px)
    if width * height > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise DamagedFileError(
            f"is {image.width} x {image.height} px, too narrow to bring its shorter side to {side_px} px; "
            "crop or remove it"
        )
    # Round half to even, as in PiCIE and the center crop of torchvision.
    left, top = round((width - side_px) / 2.0), round((height - side_px) / 2.0)
    if protocol == "picie_long":
        left = tile * side_px
        if height != side_px or left + side_px > width:
            raise UserError(
                f"is {image.width} x {image.height} px, but prepare.protocol: picie_long cuts two adjacent "
                "squares; it requires images twice as wide as high"
            )
    resized = image.resize((width, height), filter_)
    return np.asarray(resized.crop((left, top, left + side_px, top + side_px)))
