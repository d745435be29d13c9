"""Files that `segment` writes for an image: label map, overlay, and map of confidence."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from stages.core.atomic import atomic_path
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


def to_gray(confidence: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Gray levels: 255 is a confidence of 1."""
    return np.rint(confidence * 255).astype(np.uint8)
