"""Files that `segment` writes for an image: label map, overlay, and map of confidence."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from stages.core.artefacts import atomic_path
from stages.reporting.palette import colourise
from stages.settings.errors import UserError
from stages.tools.segmenting.trained_model import BAND_ELEMENTS, Segmentation

OVERLAY_SHARE = 0.5  # opacity of the colors over the image
LONGEST_JPEG = 65_500  # px; JPEG stores sides in 16 bits, and libjpeg stops here


def output_names(name: str, *, scores: bool) -> tuple[str, ...]:
    """Names of the files that are written for an image, relative to the output folder; label map first."""
    stem = name.removesuffix(Path(name).suffix)
    return (f"{stem}.png", f"{stem}_overlay.jpg", *([f"{stem}_confidence.png"] if scores else []))


def write_outputs(
    out: Path,
    names: tuple[str, ...],
    picture: UInt8[np.ndarray, "H W 3"],
    found: Segmentation,
    colours: UInt8[np.ndarray, "K 3"],
) -> None:
    """Write the files of `output_names`; `picture` becomes the overlay."""
    labels = Image.fromarray(found.ids, mode="P")
    labels.putpalette(colours.flatten().tolist())
    with atomic_path(out / names[0]) as temporary:
        labels.save(temporary, format="PNG")
    mixed = picture  # overwritten band by band: a large image is in memory once
    band = max(1, BAND_ELEMENTS // (3 * picture.shape[1]))
    for start in range(0, len(picture), band):
        rows = slice(start, start + band)
        drawn = colourise(found.ids[rows], colours)
        mixed[rows] = (1 - OVERLAY_SHARE) * picture[rows] + OVERLAY_SHARE * drawn
    overlay = Image.fromarray(mixed)
    if max(overlay.size) > LONGEST_JPEG:
        overlay.thumbnail((LONGEST_JPEG, LONGEST_JPEG))
    with atomic_path(out / names[1]) as temporary:
        overlay.save(temporary, format="JPEG", quality=92)
    for name in names[2:]:
        with atomic_path(out / name) as temporary:
            Image.fromarray(to_gray(found.confidence)).save(temporary, format="PNG")


def read_ids(
    path: Path, size: tuple[int, int], colours: UInt8[np.ndarray, "K 3"]
) -> UInt8[np.ndarray, "H W"]:
    """Read a label map, which may have been corrected by hand.

    Args:
        path: palette or gray PNG.
        size: (width, height) of its image.
        colours: RGB of each cluster id, with which it was written.

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
    return _by_colour(path, ids, palette, colours) if mode == "P" else ids


def _by_colour(
    path: Path,
    ids: UInt8[np.ndarray, "H W"],
    palette: UInt8[np.ndarray, "P 3"],
    colours: UInt8[np.ndarray, "K 3"],
) -> UInt8[np.ndarray, "H W"]:
    """The ids as they were written; a program that builds a palette of its own numbers the colors anew.

    Raises:
        UserError: the palette is another, and has colors of no cluster.
    """
    used = np.flatnonzero(np.bincount(ids.ravel(), minlength=1 << 8))
    clusters = used[used < len(colours)]
    if clusters.max(initial=0) < len(palette) and np.array_equal(palette[clusters], colours[clusters]):
        return ids
    places = {tuple(colour): place for place, colour in reversed(list(enumerate(colours.tolist())))}
    table = np.zeros(1 << 8, np.uint8)
    for one in used:
        place = places.get(tuple(palette[one].tolist())) if one < len(palette) else None
        if place is None:
            raise UserError(
                f"{path}: has another palette than it was written with, and a color of no cluster in it, so "
                "its ids may mean others; save it with its own palette or as a gray PNG of ids, or delete it"
            )
        table[one] = place
    return table[ids]


def merge(ids: UInt8[np.ndarray, "H W"], merged: UInt8[np.ndarray, " K"]) -> UInt8[np.ndarray, "H W"]:
    """The ids with merged clusters as one; a corrected map may have ids that later names have merged."""
    stands = np.arange(1 << 8, dtype=np.uint8)
    stands[: len(merged)] = merged
    return stands[ids]


def to_gray(confidence: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Gray levels: 255 is a confidence of 1."""
    return np.rint(confidence * 255).astype(np.uint8)
