"""Decoding of label maps into class ids."""

import numpy as np
from PIL import Image

from stages.dataset.opening import RAW_MODE, opened
from stages.dataset.sixteen_bits import GRAY_MODES, is_deep_color
from stages.dataset.source import Remark
from stages.dataset.taxonomy import Taxonomy, written
from stages.settings.errors import UserError, listed

# Pillow scales 2-bit and 4-bit gray values to 0..255; class ids must be scaled back.
STRETCHED = {"L;2": 85, "L;4": 17}
MOST_COLORS = 64  # a picture with more colors is no label map
MOST_INDICES = 256  # of a palette
ONE_ID_PER_PIXEL = "expected one class id per pixel (8-bit grayscale or palette PNG)"


def decode_labels(content: bytes, taxonomy: Taxonomy, *, by_gray: bool = False) -> tuple[np.ndarray, Remark]:
    """Decode a label map to class ids uint8 [rows, columns], `IGNORED` for labels without a class.

    A palette image holds class ids as its indices. A program that rewrites PNG files may have made it from a
    gray label map, in an order of its own; then the gray levels of the palette are the ids (`by_gray`).
    If the taxonomy has colors, a palette image is read by its colors and never by its indices.

    Raises:
        UserError: one fault, without the name of the file.
    """
    image = opened(content)
    if taxonomy.colors and image.mode in ("RGB", "RGBA", "P"):
        return _by_color(image, taxonomy), Remark.NONE
    if is_deep_color(image.mode, image.info[RAW_MODE]):
        raise UserError(f"has colors of 16 bits per channel, of which 8 are lost; {ONE_ID_PER_PIXEL}")
    ids, remark = _ids(image, by_gray=by_gray)
    beyond = None if ids is None else taxonomy.unknown(ids)
    if ids is None or (beyond is not None and beyond.size and image.mode not in ("P", "L", "1", *GRAY_MODES)):
        raise UserError(_color_fault(image, taxonomy))
    if beyond is not None and beyond.size:
        raise UserError(
            f"has class {'id' if beyond.size == 1 else 'ids'} {listed(list(map(str, beyond)))}, but "
            f"{taxonomy.rule}"
        )
    return taxonomy.to_class_ids(ids), remark


def _by_color(image: Image.Image, taxonomy: Taxonomy) -> np.ndarray:
    """Class ids of a map in colors; of a gray one with three channels also by its values, if all are listed.

    Raises:
        UserError: a color is not listed.
    """
    found = taxonomy.of_colors(np.asarray(image.convert("RGB")))
    if found is None and image.mode != "P":
        ids, _ = _ids(image, by_gray=False)
        if ids is not None and set(np.unique(ids).tolist()) <= (taxonomy.known or frozenset()):
            return taxonomy.to_class_ids(ids)
    if found is None:
        raise UserError(_color_fault(image, taxonomy))
    return found


def _ids(image: Image.Image, *, by_gray: bool) -> tuple[np.ndarray | None, Remark]:
    """Label ids of a map; None if it is drawn in colors."""
    if image.mode in ("RGB", "RGBA"):
        pixels = np.asarray(image)[..., :3].astype(np.int64)
        is_gray = bool((pixels == pixels[..., :1]).all())  # a gray map that was saved with three channels
        return (pixels[..., 0] if is_gray else None), Remark.NONE
    if image.mode not in ("P", "L", "1", *GRAY_MODES):
        raise UserError(f"is an image of mode {image.mode}, {ONE_ID_PER_PIXEL}")
    ids = np.asarray(image).astype(np.int64) // STRETCHED.get(image.info.get(RAW_MODE, ""), 1)
    grays = gray_levels(image, ids) if by_gray else None
    return (ids, Remark.NONE) if grays is None else (grays, Remark.GRAY_PALETTE)


def gray_levels(image: Image.Image, indices: np.ndarray) -> np.ndarray | None:
    """Gray levels of a palette image; None if a color is no gray, or if the indices are the levels."""
    if image.mode != "P":
        return None
    palette = np.asarray(image.getpalette("RGB"), np.int64).reshape(-1, 3)
    used = np.unique(indices)
    if used[-1] >= len(palette):
        return None
    colors = palette[used]
    is_gray = bool((colors == colors[:, :1]).all())
    return palette[:, 0][indices] if is_gray and not np.array_equal(colors[:, 0], used) else None


def is_reordered(content: bytes, taxonomy: Taxonomy) -> bool:
    """Whether a label map shows that its program has made palettes of gray levels.

    Black and white alone show nothing: a palette of two indices is drawn so, too.
    """
    image = opened(content)
    grays = gray_levels(image, np.asarray(image)) if image.mode == "P" else None
    return grays is not None and not taxonomy.unknown(grays).size and bool(set(np.unique(grays)) - {0, 255})


def _color_fault(image: Image.Image, taxonomy: Taxonomy) -> str:
    most = MOST_COLORS + len(taxonomy.colors)
    found = image.convert("RGB").getcolors(max(most, MOST_INDICES) if image.mode == "P" else most)
    if found is None:
        return f"has more than {most} colors, {ONE_ID_PER_PIXEL}"
    colors = [written(np.asarray(color)) for _, color in sorted(found, reverse=True)]
    if taxonomy.colors:
        listed_ones = dict(taxonomy.colors)
        unlisted = [color for color in colors if int(color[1:], 16) not in listed_ones]
        what, remedy = ("color", "it") if len(unlisted) == 1 else ("colors", "each")
        return f"has the {what} {listed(unlisted)}, which labels.csv does not list; add a line for {remedy}"
    return (
        f"has colors in place of class ids ({listed(colors)}); add labels.csv with the header value,class "
        f"and a line for each color, such as {colors[0]},NAME"
    )
