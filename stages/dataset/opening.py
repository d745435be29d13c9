"""Opening of image files, with a clear message for every fault."""

import contextlib
import warnings
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from stages.dataset.sixteen_bits import raw_mode
from stages.settings.errors import DamagedFileError

# Keys in the info of an opened image.
RAW_MODE, APPLIED = "raw mode of the file", "orientation that is applied"
ORIENTATION_TAG = 0x0112  # of EXIF and TIFF; 1: as stored
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def opened(content: bytes) -> Image.Image:
    """Decode the first page of an image file, in the mode of the file.

    Raises:
        DamagedFileError: the content is no image, is damaged, or has more pixels than Pillow allows.
    """
    if not content:
        raise DamagedFileError("is empty; replace or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(content))
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError  # Pillow itself only warns up to twice as many
            stored = raw_mode(image)
            # A TIFF is turned as it is loaded, and then does not say so.
            turned = getattr(image, "tag_v2", {}).get(ORIENTATION_TAG, 1)
            image.load()
    except Image.DecompressionBombError as error:
        raise DamagedFileError(
            f"has more than {Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit against decompression bombs; "
            "scale it down or remove it"
        ) from error
    except UnidentifiedImageError as error:
        raise DamagedFileError("is not an image format supported by Pillow; replace or remove it") from error
    except Exception as error:  # decoders raise many exception types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedFileError(f"cannot be decoded ({reason}); replace or remove it") from error
    image.info[RAW_MODE], image.info[APPLIED] = stored, turned
    return image


def orientation(image: Image.Image) -> tuple[bool, Image.Transpose | None]:
    """Whether a camera says that an opened image is turned, and the turn that is left to make."""
    if image.info[APPLIED] in TURNS:
        return True, None
    turn = None
    with contextlib.suppress(Exception):  # a damaged EXIF block
        turn = TURNS.get(image.getexif().get(ORIENTATION_TAG, 1))
    return turn is not None, turn


def has_pages(content: bytes, form: str | None) -> bool:
    """Whether a file has several pages or frames; pictures that cameras add to a JPEG do not count."""
    if form not in ("TIFF", "PNG", "WEBP", "AVIF", "GIF"):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(Image.open(BytesIO(content)), "n_frames", 1) > 1
    except Exception:  # the first page was read; what follows is damaged
        return False
