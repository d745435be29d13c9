"""Decoding of image files into RGB images and class ids, with a clear message for every fault."""

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from stages.dataset.source import DataSet, Decoded, Item, RawFile, Remark, listed, read_raw
from stages.dataset.taxonomy import Taxonomy, written
from stages.settings.errors import DamagedFileError, UserError

SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
DEEP_SUFFIXES = (".png", ".tif", ".tiff")  # of formats that can have 16 bits per channel
BITS = (8, 10, 12, 14, 16)  # that cameras and microscopes use of 16
WHITE_IS_ZERO = (262, 0)  # TIFF tag PhotometricInterpretation and its value
BACKGROUND = (255, 255, 255)  # under transparent pixels, as most viewers show them
# Pillow scales 2-bit and 4-bit gray values to 0..255; class ids must be scaled back.
STRETCHED = {"L;2": 85, "L;4": 17}
MOST_COLORS = 64  # a picture with more colors is no label map
_RAW_MODE = "raw mode of the file"


def decode_image(content: bytes, *, upright: bool = True, bits: int = 16) -> tuple[Image.Image, Remark]:
    """Decode an image to 8-bit RGB.

    Args:
        content: file content.
        upright: apply the EXIF orientation, as image viewers do; the published protocols ignore it.
        bits: bits of 16-bit channels that the data set uses (`bits_in_use`); their range becomes 0 to 255.

    Raises:
        UserError: one fault, without the name of the file.
    """
    image = _opened(content)
    remarks = Remark.PAGES if _has_pages(content, image.format) else Remark.NONE
    if image.mode == "F":
        raise UserError("has 32-bit floating-point pixels; save it with 8 or 16 bits per channel")
    is_inverted = _is_white_zero(image)
    if bits < 16 and _is_deep_color(image.mode, image.info[_RAW_MODE]):
        image = _shallow_color(content, image, bits)
    if upright:
        image = _upright(image)
    if image.mode in SIXTEEN_BIT_MODES:
        image = Image.fromarray(_gray_to_eight_bits(image, bits, is_inverted=is_inverted))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        if np.asarray(layer)[..., 3].min() < 255:
            remarks |= Remark.TRANSPARENT
            flat = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
            image = Image.alpha_composite(flat, layer)
    return image.convert("RGB"), remarks


def bits_in_use(root: Path, names: Iterable[str]) -> int:
    """Bits that the images with 16-bit channels use, over the whole data set; 16 if there are none.

    A set that is stored with 16 bits per channel often uses 12. Taken for 16 bits, its images would be black;
    scaled one by one, their brightness would no longer compare.
    """
    largest = -1
    for name in names:
        if not name.lower().endswith(DEEP_SUFFIXES):
            continue
        try:
            largest = max(largest, _largest_deep_value(root / name))
        except Exception:  # what cannot be opened is named when it is packed
            continue
    return 16 if largest < 0 else next(bits for bits in BITS if largest < 1 << bits)


def _largest_deep_value(path: Path) -> int:
    """The largest value of an image with 16-bit channels; -1 for any other image."""
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")
        if image.mode in SIXTEEN_BIT_MODES:
            return int(np.clip(np.asarray(image), 0, 65535).max())
        if not _is_deep_color(image.mode, _raw_mode(image)):
            return -1
        return int(_deep_color(path.read_bytes())[..., :3].max())


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the pixels are stored, such as RGB;16B; empty if the format has no such name."""
    if not image.tile:
        return ""
    args = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) else args)


def _is_deep_color(mode: str, raw_mode: str) -> bool:
    return mode in ("RGB", "RGBA", "RGBX", "LA") and ";16" in raw_mode


def _deep_color(content: bytes) -> np.ndarray:
    """Colors with 16 bits per channel, uint16 [rows, columns, channels].

    Pillow keeps the high byte of each value. Read in the other byte order, it keeps the low one.
    """
    high, low = Image.open(BytesIO(content)), Image.open(BytesIO(content))
    low.tile = [tile._replace(args=_swapped(tile.args)) for tile in low.tile]
    return np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)


def _swapped(args: Any) -> Any:
    """Arguments of a tile decoder, with the other byte order in the name of the raw mode."""
    name, *others = args if isinstance(args, tuple) else (args,)
    native, other = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    kind, order = name[:-1], name[-1].replace("N", native)
    swapped = f"{kind}{other if order == native else native}"
    return (swapped, *others) if isinstance(args, tuple) else swapped


def _is_white_zero(image: Image.Image) -> bool:
    """Whether 0 is white, which Pillow inverts for 8 bits but not for 16."""
    tag, white = WHITE_IS_ZERO
    return image.mode in SIXTEEN_BIT_MODES and getattr(image, "tag_v2", {}).get(tag) == white


def _shallow_color(content: bytes, image: Image.Image, bits: int) -> Image.Image:
    try:
        pixels = _deep_color(content)
    except (ValueError, OSError) as error:
        raise UserError(
            f"has 16-bit colors of which {bits} bits are used, in a form that Pillow cannot read "
            f"({error}); save it with 8 bits per channel"
        ) from error
    shallow = _to_eight_bits(pixels, bits)
    if pixels.shape[2] % 2 == 0:  # the last channel is alpha, which uses all bits
        shallow[..., -1] = pixels[..., -1] >> 8
    shallow_image = Image.fromarray(shallow)
    shallow_image.info["exif"] = image.info.get("exif", b"")
    return shallow_image


def _gray_to_eight_bits(image: Image.Image, bits: int, *, is_inverted: bool) -> np.ndarray:
    values = _to_eight_bits(np.clip(np.asarray(image), 0, 65535), bits)
    return 255 - values if is_inverted else values


def _to_eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    return np.minimum(values.astype(np.uint32) >> (bits - 8), 255).astype(np.uint8)


def decode_labels(content: bytes, taxonomy: Taxonomy) -> tuple[np.ndarray, Remark]:
    """Decode a label map to class ids uint8 [rows, columns], `IGNORED` for labels without a class.

    A palette image holds class ids as its indices. If its palette has only gray levels which are class ids
    themselves, it is a gray label map that a program has reordered, and the gray levels are the ids.

    Raises:
        UserError: one fault, without the name of the file.
    """
    image = _opened(content)
    is_color = image.mode in ("RGB", "RGBA")
    if taxonomy.colors and (is_color or image.mode == "P"):
        return taxonomy.of_colors(np.asarray(image.convert("RGB"))), Remark.NONE
    if is_color:
        raise UserError(_color_fault(image))
    if image.mode not in ("P", "L", "1", *SIXTEEN_BIT_MODES):
        raise UserError(
            f"is an image of mode {image.mode}, "
            "expected one class id per pixel (8-bit grayscale or palette PNG)"
        )
    ids = np.asarray(image).astype(np.int64) // STRETCHED.get(image.info.get(_RAW_MODE, ""), 1)
    grays = _gray_ids(image, ids, taxonomy)
    ids = ids if grays is None else grays
    beyond = taxonomy.unknown(ids)
    if beyond.size:
        raise UserError(
            f"has class {'id' if beyond.size == 1 else 'ids'} {_listed(beyond)}, but {taxonomy.rule}"
        )
    return taxonomy.to_class_ids(ids), Remark.NONE if grays is None else Remark.GRAY_PALETTE


def _gray_ids(image: Image.Image, indices: np.ndarray, taxonomy: Taxonomy) -> np.ndarray | None:
    """Gray levels of a palette image, if they are the class ids rather than the indices."""
    if image.mode != "P":
        return None
    palette = np.asarray(image.getpalette("RGB"), np.int64).reshape(-1, 3)
    used = np.unique(indices)
    if used[-1] >= len(palette):
        return None
    colors = palette[used]
    grays = colors[:, 0]
    is_gray = bool((colors == grays[:, None]).all())
    if not is_gray or np.array_equal(grays, used) or taxonomy.unknown(grays).size:
        return None
    # Black and white alone say nothing: a palette of two indices is drawn so, too.
    return palette[:, 0][indices] if set(grays.tolist()) - {0, 255} else None


def _color_fault(image: Image.Image) -> str:
    found = image.convert("RGB").getcolors(MOST_COLORS)
    if found is None:
        return (
            f"has more than {MOST_COLORS} colors, "
            "expected one class id per pixel (8-bit grayscale or palette PNG)"
        )
    colors = [written(np.asarray(color)) for _, color in sorted(found, reverse=True)]
    return (
        f"has colors in place of class ids ({listed(colors)}); add labels.csv with the header value,class "
        f"and a line for each color, such as {colors[0]},NAME"
    )


def _opened(content: bytes) -> Image.Image:
    if not content:
        raise DamagedFileError("is empty; replace or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content))
            raw_mode = _raw_mode(image)
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DamagedFileError(
            f"has more than {Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit against decompression bombs; "
            "scale it down or remove it"
        ) from error
    except UnidentifiedImageError as error:
        raise DamagedFileError("is not an image format supported by Pillow; replace or remove it") from error
    except Exception as error:  # decoders raise many exception types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedFileError(f"cannot be decoded ({reason}); replace or remove it") from error
    image.info[_RAW_MODE] = raw_mode
    return image


def _has_pages(content: bytes, form: str | None) -> bool:
    """Whether a file has several pages or frames; pictures that cameras add to a JPEG do not count."""
    if form not in ("TIFF", "PNG", "WEBP", "GIF"):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(Image.open(BytesIO(content)), "n_frames", 1) > 1
    except Exception:  # the first page was read; what follows is damaged
        return False


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
        bits: bits of 16-bit channels that the data set uses.
    """

    root: Path
    taxonomy: Taxonomy
    upright: bool = True
    bits: int = 16

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
                labels, more = decode_labels(self._read(item.labels, files), self.taxonomy)
                remarks |= more
            except (UserError, OSError) as error:
                faults.append(_named(item.labels, error))
        if image is not None and labels is not None and image.size != labels.shape[::-1]:
            faults.append(UserError(_other_size(item, image, labels)))
        if faults:
            is_damage = all(isinstance(fault, DamagedFileError) for fault in faults)
            raise (DamagedFileError if is_damage else UserError)(*map(str, faults))
        assert image is not None
        return Decoded(image, labels, tuple(files), remarks)

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


def with_bits(data: DataSet) -> DataSet:
    """The data set, with the bits that its 16-bit images use and a note on them."""
    decode = data.decode
    if not isinstance(decode, FileDecoder):
        return data
    bits = bits_in_use(decode.root, sorted({item.source for item in (*data.train, *data.val)}))
    if bits == decode.bits:
        return data
    note = f"images with 16 bits per channel use {bits} of them and are scaled by 1 / {(1 << bits) - 1:,}"
    return replace(data, decode=replace(decode, bits=bits), notes=(*data.notes, note))
