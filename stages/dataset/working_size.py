"""Pictures and label maps at working size: shorter side resized, then the centre square, as PiCIE does."""

import numpy as np
from PIL import Image

from stages.runtime.errors import UserError


def square_image(image: Image.Image, side_px: int) -> np.ndarray:
    """RGB uint8 [side_px, side_px, 3], resized bilinearly (antialiased where it shrinks).

    Raises:
        UserError: the image is so narrow that the resized one would be gigantic.
    """
    return _square(image, side_px, Image.Resampling.BILINEAR)


def square_labels(labels: np.ndarray, side_px: int) -> np.ndarray:
    """Class ids uint8 [side_px, side_px], each from its nearest pixel.

    Raises:
        UserError: as `square_image`.
    """
    return _square(Image.fromarray(labels), side_px, Image.Resampling.NEAREST)


def resized_size(width: int, height: int, side_px: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `side_px`, and the longer rounded down as in torchvision."""
    if width <= height:
        return side_px, side_px * height // width
    return side_px * width // height, side_px


def _square(image: Image.Image, side_px: int, filter_: Image.Resampling) -> np.ndarray:
    width, height = resized_size(*image.size, side_px)
    if width * height > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise UserError(
            f"is {image.width} x {image.height} px, too narrow to bring its shorter side to {side_px} px; "
            "crop or remove it"
        )
    # The rounding, to even at .5, is PiCIE's.
    left, top = round((width - side_px) / 2.0), round((height - side_px) / 2.0)
    resized = image.resize((width, height), filter_)
    return np.asarray(resized.crop((left, top, left + side_px, top + side_px)))
