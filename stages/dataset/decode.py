"""Bytes of image files into RGB pictures and class ids, with every fault put into words."""

import warnings
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.dataset.taxonomy import Taxonomy
from stages.runtime.errors import UserError

SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
# Pillow stretches grey values of 2 and 4 bits to 0..255; class ids have to be shrunk again.
STRETCHED = {"L;2": 85, "L;4": 17}


def decode_image(content: bytes, *, upright: bool = True) -> Image.Image:
    """RGB, 16 bits brought to 8, transparency dropped.

    Args:
        content: of the file.
        upright: turn it as its EXIF block asks, as viewers do; published protocols do not.

    Raises:
        UserError: one fault, without the name of the file.
    """
    image = _upright(_opened(content)) if upright else _opened(content)
    if image.mode == "F":
        raise UserError("has 32-bit floating point pixels; save it with 8 or 16 bits a channel")
    if image.mode in SIXTEEN_BIT_MODES:
        image = Image.fromarray(np.uint8(np.clip(np.asarray(image), 0, 65535) // 256))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode_labels(content: bytes, taxonomy: Taxonomy) -> np.ndarray:
    """Class ids uint8 [rows, columns], `IGNORED` where a label is no class.

    Raises:
        UserError: one fault, without the name of the file.
    """
    image = _opened(content)
    if image.mode not in ("P", "L", "1", *SIXTEEN_BIT_MODES):
        raise UserError(
            f"is a picture of mode {image.mode}, "
            "expected a class id for each pixel (8-bit grey or palette PNG)"
        )
    ids = np.asarray(image).astype(np.int64) // STRETCHED.get(image.info.get(_RAW_MODE, ""), 1)
    beyond = taxonomy.unknown(ids)
    if beyond.size:
        raise UserError(
            f"has class {'id' if beyond.size == 1 else 'ids'} {_listed(beyond)}, but {taxonomy.rule}"
        )
    return taxonomy.to_class_ids(ids)


_RAW_MODE = "raw mode of the file"


def _opened(content: bytes) -> Image.Image:
    if not content:
        raise UserError("is empty; replace or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content))
            raw_mode = str(image.tile[0][3]) if image.tile else ""
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"has more than {Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit against decompression bombs; "
            "scale it down or remove it"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError("is not an image that Pillow knows; replace or remove it") from error
    except Exception as error:  # decoders of damaged files fail in every way there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot be decoded ({reason}); replace or remove it") from error
    image.info[_RAW_MODE] = raw_mode
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about a rotation, and nothing against the image
        return image


def _listed(ids: np.ndarray) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if ids.size > 5 else "")
