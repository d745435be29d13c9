"""Files that `segment` writes for an image: label map, overlay, and map of confidence."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from stages.core.artefacts import atomic_path
from stages.settings.errors import UserError
from stages.tools.segmenting.trained_model import BAND_ELEMENTS

OPACITY = 0.5  # of the colors over the image
LONGEST_JPEG = 65_500  # px; JPEG stores sides in 16 bits, and libjpeg stops here
OVERLAY, CONFIDENCE = "_overlay.jpg", "_confidence.png"  # ends of names


def output_names(name: str, *, scores: bool, overlay: bool = True) -> tuple[str, ...]:
    """Names of the files that are written for an image, relative to the output folder; label map first.

    Args:
        name: the image.
        scores: whether a map of confidence is written.
        overlay: whether an overlay is written.
    """
    ends = (".png", *([OVERLAY] if overlay else []), *([CONFIDENCE] if scores else []))
    return tuple(name.removesuffix(Path(name).suffix) + end for end in ends)


def write_outputs(
    out: Path,
    names: tuple[str, ...],
    picture: UInt8[np.ndarray, "H W 3"],
    ids: UInt8[np.ndarray, "H W"],
    confidence: UInt8[np.ndarray, "H W"] | None,
    colours: UInt8[np.ndarray, "K 3"],
) -> None:
    """Write the files of `output_names`; `picture` may become the overlay.

    Args:
        out: folder.
        names: of the files.
        picture: the image.
        ids: cluster id of each pixel.
        confidence: `to_gray` of that of each pixel, if it is to be written.
        colours: RGB of each cluster id.
    """
    label_map, *others = names
    with atomic_path(out / label_map) as temporary:
        _with_palette(ids, colours).save(temporary, format="PNG")
    for name in others:
        with atomic_path(out / name) as temporary:
            if confidence is None or name.endswith(OVERLAY):
                _overlay(picture, ids, colours).save(temporary, format="JPEG", quality=92)
            else:
                Image.fromarray(confidence).save(temporary, format="PNG")


def _with_palette(ids: UInt8[np.ndarray, "H W"], colours: UInt8[np.ndarray, "K 3"]) -> Image.Image:
    labels = Image.fromarray(ids, mode="P")
    labels.putpalette(colours.flatten().tolist())
    return labels


def _overlay(
    picture: UInt8[np.ndarray, "H W 3"], ids: UInt8[np.ndarray, "H W"], colours: UInt8[np.ndarray, "K 3"]
) -> Image.Image:
    """The colors over the image, which is overwritten band by band: a large image is in memory once."""
    band = max(1, BAND_ELEMENTS // (3 * picture.shape[1]))
    for start in range(0, len(picture), band):
        rows = slice(start, start + band)
        drawn = _with_palette(ids[rows], colours).convert("RGB")
        picture[rows] = Image.blend(Image.fromarray(picture[rows]), drawn, OPACITY)
    overlay = Image.fromarray(picture)
    if max(overlay.size) > LONGEST_JPEG:
        overlay.thumbnail((LONGEST_JPEG, LONGEST_JPEG))
    return overlay


def read_ids(
    path: Path,
    size: tuple[int, int],
    colours: UInt8[np.ndarray, "K 3"],
    merged: UInt8[np.ndarray, " N"],
) -> UInt8[np.ndarray, "H W"]:
    """Read a label map, which may have been corrected by hand.

    Args:
        path: palette or gray PNG.
        size: (width, height) of its image.
        colours: RGB of each cluster id, with which it was written.
        merged: the cluster that now stands for each cluster.

    Raises:
        UserError: it is no such label map.
    """
    try:
        with Image.open(path) as image:
            mode, found, ids = image.mode, image.size, np.asarray(image)
            palette = np.array(image.getpalette() if mode == "P" else (), np.uint8).reshape(-1, 3)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: is no label map that can be read ({error}); mend or delete it") from error
    if mode not in ("P", "L") or found != size:
        raise UserError(
            f"{path}: is a label map of mode {mode} and {found[0]} x {found[1]} px; expected cluster ids as "
            f"a palette (P) or gray (L) PNG of {size[0]} x {size[1]} px; mend or delete it"
        )
    if mode == "L" or _fits(ids, palette, colours):
        return ids
    return _by_colour(path, ids, palette, colours, merged)


def _fits(
    ids: UInt8[np.ndarray, "H W"], palette: UInt8[np.ndarray, "P 3"], colours: UInt8[np.ndarray, "K 3"]
) -> bool:
    """Whether the ids have the colors with which they were written."""
    used = np.unique(ids)
    used = used[used < len(colours)]
    return used.max(initial=0) < len(palette) and np.array_equal(palette[used], colours[used])


def _by_colour(
    path: Path,
    ids: UInt8[np.ndarray, "H W"],
    palette: UInt8[np.ndarray, "P 3"],
    colours: UInt8[np.ndarray, "K 3"],
    merged: UInt8[np.ndarray, " N"],
) -> UInt8[np.ndarray, "H W"]:
    """The ids as they were written; a program that builds a palette of its own numbers the colors anew.

    Raises:
        UserError: the palette has a color of no cluster, or one of several that are not merged.
    """
    stands, table = _stands(merged), np.zeros(1 << 8, np.uint8)
    for one in np.unique(ids):
        same = (colours == palette[one]).all(1) if one < len(palette) else np.zeros(len(colours), bool)
        places = np.flatnonzero(same)
        if len(np.unique(stands[places])) != 1:
            raise UserError(
                f"{path}: has another palette than it was written with, and in it a color of no cluster or "
                "of several, so its ids may mean others; save it with its own palette or as a gray PNG of "
                "ids, or delete it"
            )
        table[one] = places[0]
    return table[ids]


def merge(ids: UInt8[np.ndarray, "H W"], merged: UInt8[np.ndarray, " K"]) -> UInt8[np.ndarray, "H W"]:
    """The ids with merged clusters as one; a corrected map may have ids that later names have merged."""
    return _stands(merged)[ids]


def _stands(merged: UInt8[np.ndarray, " K"]) -> UInt8[np.ndarray, "256"]:
    """What stands for each id, also for those of no cluster."""
    stands = np.arange(1 << 8, dtype=np.uint8)
    stands[: len(merged)] = merged
    return stands


def to_gray(confidence: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Gray levels: 255 is a confidence of 1."""
    return np.rint(confidence * 255).astype(np.uint8)
