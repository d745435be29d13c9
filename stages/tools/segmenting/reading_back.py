"""Reads label maps of `segment` back, which may have been corrected by hand in another program."""

from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from stages.dataset.truth import IGNORED
from stages.reporting.legend import css
from stages.settings.errors import UserError, listed

MOST_COLOURS = 256  # of a palette PNG


def read_ids(
    path: Path,
    size: tuple[int, int],
    colours: UInt8[np.ndarray, "K 3"],
    merged: UInt8[np.ndarray, " N"],
) -> UInt8[np.ndarray, "H W"]:
    """Read a label map, which may have been corrected by hand.

    Args:
        path: palette, gray or RGB PNG; one in RGB is read by its colors, as is one with another palette.
        size: (width, height) of its image.
        colours: RGB of each cluster id, with which it was written.
        merged: the cluster that now stands for each cluster.

    Raises:
        UserError: it is no such label map.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB") if file.mode == "RGBA" and _is_opaque(file) else file
            mode, found, ids = image.mode, image.size, np.asarray(image)
            palette = np.array(image.getpalette() if mode == "P" else (), np.uint8).reshape(-1, 3)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: is no label map that can be read ({error}); mend or delete it") from error
    if mode not in ("P", "L", "RGB") or found != size:
        raise UserError(
            f"{path}: is a label map of mode {mode} and {found[0]} x {found[1]} px; expected cluster ids as "
            f"a palette (P) or gray (L) PNG of {size[0]} x {size[1]} px, or their colors as an RGB PNG; mend "
            "or delete it"
        )
    if mode == "RGB":
        ids, palette = _with_own_palette(path, ids)
    if mode == "L" or _fits(ids, palette, colours):
        return ids
    return _by_colour(path, ids, palette, colours, merged)


def count_ids(ids: UInt8[np.ndarray, "H W"]) -> Int64[np.ndarray, "256"]:
    """Number of pixels of each id; NumPy would first make eight bytes of each pixel."""
    return np.array(Image.fromarray(ids).histogram())


def ids_of_no_cluster(path: Path, ids: UInt8[np.ndarray, "H W"], num_clusters: int) -> str:
    """The share of the pixels with ids of no cluster, and the first of these ids; empty if there are none.

    255 counts as none, because it marks pixels to be ignored.

    Args:
        path: file of the label map.
        ids: what it was read as.
        num_clusters: of the model.

    Raises:
        UserError: no pixel has an id of a cluster, though some are not to be ignored.
    """
    counts = count_ids(ids)
    unknown = num_clusters + np.flatnonzero(counts[num_clusters:IGNORED])
    if not len(unknown):
        return ""
    found = listed([str(one) for one in unknown], most=3)
    if not counts[:num_clusters].any():
        raise UserError(
            f"{path}: no pixel has an id of a cluster, 0 to {num_clusters - 1}, but {found}; perhaps a "
            "program has stored gray levels in place of ids: save the palette or RGB, or delete it"
        )
    return f"{100 * counts[unknown].sum() / ids.size:.3g} %, with {found}"


def _is_opaque(image: Image.Image) -> bool:
    """Whether its alpha channel, which painting programs add, hides nothing."""
    return image.getchannel("A").getextrema() == (255, 255)


def _with_own_palette(
    path: Path, picture: UInt8[np.ndarray, "H W 3"]
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "P 3"]]:
    """An RGB picture as indices and a palette of its colors.

    Raises:
        UserError: it has more colors than there can be clusters.
    """
    red, green, blue = (picture[..., channel].astype(np.int32) for channel in range(3))
    packed = red << 16 | green << 8 | blue
    values, ids = np.unique(packed, return_inverse=True)
    if len(values) > MOST_COLOURS:
        raise UserError(
            f"{path}: has {len(values):,} colors, more than there are clusters; edges were smoothed or the "
            "file was a JPEG: paint without anti-aliasing and save it as a PNG, or delete it"
        )
    palette = np.stack([values >> 16, values >> 8 & 255, values & 255], 1).astype(np.uint8)
    return ids.reshape(packed.shape).astype(np.uint8), palette


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
                f"{path}: has other colors than it was written with, and among them one of no cluster or of "
                f"several{_named(palette, one)}; save it with its own palette or as a gray PNG of ids, or "
                "delete it"
            )
        table[one] = places[0]
    return table[ids]


def _named(palette: UInt8[np.ndarray, "P 3"], one: int) -> str:
    """The color at an index, in brackets, if the palette has it."""
    return f" ({css(palette[one])})" if one < len(palette) else ""


def merge(ids: UInt8[np.ndarray, "H W"], merged: UInt8[np.ndarray, " K"]) -> UInt8[np.ndarray, "H W"]:
    """The ids with merged clusters as one; a corrected map may have ids that later names have merged."""
    return _stands(merged)[ids]


def _stands(merged: UInt8[np.ndarray, " K"]) -> UInt8[np.ndarray, "256"]:
    """What stands for each id, also for those of no cluster."""
    stands = np.arange(1 << 8, dtype=np.uint8)
    stands[: len(merged)] = merged
    return stands
