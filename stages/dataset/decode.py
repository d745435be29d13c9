"""Decoding of image files into RGB images and class ids, with a clear message for every fault."""

import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.dataset.source import Decoded, Item, RawFile, read_raw
from stages.dataset.taxonomy import Taxonomy
from stages.settings.errors import UserError, raise_faults

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # of supported image files
SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
# Pillow scales 2-bit and 4-bit gray values to 0..255; class ids must be scaled back.
STRETCHED = {"L;2": 85, "L;4": 17}


def decode_image(content: bytes, *, upright: bool = True) -> Image.Image:
    """Decode an image to 8-bit RGB; 16-bit channels are reduced and transparency is dropped.

    Args:
        content: file content.
        upright: apply the EXIF orientation, as image viewers do; the published protocols ignore it.

    Raises:
        UserError: one fault, without the name of the file.
    """
    image = _upright(_opened(content)) if upright else _opened(content)
    if image.mode == "F":
        raise UserError("has 32-bit floating-point pixels; save it with 8 or 16 bits per channel")
    if image.mode in SIXTEEN_BIT_MODES:
        image = Image.fromarray(np.uint8(np.clip(np.asarray(image), 0, 65535) // 256))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode_labels(content: bytes, taxonomy: Taxonomy) -> np.ndarray:
    """Decode a label map to class ids uint8 [rows, columns], `IGNORED` for labels without a class.

    Raises:
        UserError: one fault, without the name of the file.
    """
    image = _opened(content)
    if image.mode not in ("P", "L", "1", *SIXTEEN_BIT_MODES):
        raise UserError(
            f"is an image of mode {image.mode}, "
            "expected one class id per pixel (8-bit grayscale or palette PNG)"
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
        raise UserError("is not an image format supported by Pillow; replace or remove it") from error
    except Exception as error:  # decoders raise many exception types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot be decoded ({reason}); replace or remove it") from error
    image.info[_RAW_MODE] = raw_mode
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # ignore a damaged EXIF block
        return image


def _listed(ids: np.ndarray) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if ids.size > 5 else "")


@dataclass(frozen=True)
class FileDecoder:
    """Reads one image and its label map, if any.

    Attributes:
        root: folder of the data set.
        taxonomy: taxonomy of the label maps.
        upright: apply the EXIF orientation; label maps of user data match the image as displayed.
    """

    root: Path
    taxonomy: Taxonomy
    upright: bool = True

    def __call__(self, item: Item) -> Decoded:
        """Decode an item and report all faults of both files together.

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


def _reason(error: UserError | OSError) -> str:
    return str(error) if isinstance(error, UserError) else f"cannot be read ({error.strerror})"


def _other_size(item: Item, image: Image.Image, labels: np.ndarray) -> str:
    return (
        f"{item.labels}: is {labels.shape[1]} x {labels.shape[0]} px, but {item.source} is "
        f"{image.width} x {image.height} px as displayed; label maps must match their images"
    )
