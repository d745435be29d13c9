"""Pictures of the page: compact files, or data URIs if the page is to be a single file."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8
from PIL import Image, ImageDraw, ImageFont

from stages.dataset.truth import IGNORED
from stages.pseudo_labels.pyramid import NOT_KEPT
from stages.reporting.palette import IGNORED_COLOUR

GREY = (118, 122, 128, 255)  # readable on light and dark backgrounds
GAP_PX = 6
NAME_PX = 92
FONT_PX = 15
PHOTO_QUALITY = 80  # of WebP: no artefacts to be seen when a browser enlarges a small picture


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of a page go.

    Attributes:
        folder: folder of the page.
        is_inline: write no files; the page itself holds the pictures.
        prefix: of the names of the files.
    """

    folder: Path
    is_inline: bool = False
    prefix: str = ""

    def photo(self, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> str:
        """Store a photograph as WebP; returns what `src` of an image is to be."""
        content = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(
            content, format="WEBP", quality=PHOTO_QUALITY, method=6
        )
        return self._source(f"{name}.webp", content.getvalue())

    def labels(self, name: str, labels: UInt8[np.ndarray, "h w"], colours: UInt8[np.ndarray, "n 3"]) -> str:
        """Store a label map as a palette PNG, ignored pixels in gray; returns `src`."""
        places = np.where(labels == IGNORED, len(colours), labels).astype(np.uint8)
        picture = Image.fromarray(places, mode="P")
        picture.putpalette([*colours.flatten().tolist(), *IGNORED_COLOUR])
        content = io.BytesIO()
        picture.save(content, format="PNG", optimize=True)
        return self._source(f"{name}.png", content.getvalue())

    def _source(self, name: str, content: bytes) -> str:
        if self.is_inline:
            kind = Path(name).suffix.removeprefix(".")
            return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        (self.folder / f"{self.prefix}{name}").write_bytes(content)
        return f"{self.prefix}{name}"


class Row(NamedTuple):
    """A named row of tiles; label maps are resized by nearest neighbor, photographs bicubically."""

    name: str
    tiles: UInt8[np.ndarray, "n h w 3"]
    is_labels: bool


def panel(rows: Sequence[Row], *, tile_px: int) -> Image.Image:
    """Arrange rows of tiles, one column for each image.

    Args:
        rows: rows with the same number of tiles.
        tile_px: side of a tile in the output image.
    """
    count, pitch = len(rows[0].tiles), tile_px + GAP_PX
    picture = Image.new("RGBA", (NAME_PX + count * pitch - GAP_PX, len(rows) * pitch - GAP_PX))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_PX)
    for line, row in enumerate(rows):
        top = line * pitch
        draw.text((NAME_PX - 2 * GAP_PX, top + tile_px // 2), row.name, GREY, font, anchor="rm")
        for column, tile in enumerate(row.tiles):
            resized = _resized(tile, tile_px, is_labels=row.is_labels)
            picture.paste(resized, (NAME_PX + column * pitch, top))
    return picture


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG without metadata."""
    picture.save(path, optimize=True)


def _resized(tile: UInt8[np.ndarray, "h w 3"], side_px: int, *, is_labels: bool) -> Image.Image:
    filter_ = Image.Resampling.NEAREST if is_labels else Image.Resampling.BICUBIC
    return Image.fromarray(np.ascontiguousarray(tile)).resize((side_px, side_px), filter_)


@dataclass(frozen=True)
class Exemplars:
    """One pseudo-label, its number of kept views, and (image, view) of the best views in score order."""

    pseudo_label: int
    num_kept: int
    views: tuple[tuple[int, int], ...]


def exemplars(
    kept_views: Int32[np.ndarray, "N V"],
    score: Float32[np.ndarray, "N V"],
    *,
    num_clusters: int,
    views_per_cluster: int,
) -> list[Exemplars]:
    """Select the `num_clusters` pseudo-labels with the most kept views; ties go to the lower id.

    Args:
        kept_views: pseudo-label of each kept view, `NOT_KEPT` for the others.
        score: cosine similarity of each view to its cluster center.
        num_clusters: maximum number of pseudo-labels.
        views_per_cluster: maximum number of views per pseudo-label, highest scores first, then by place.
    """
    labels, sizes = np.unique(kept_views[kept_views != NOT_KEPT], return_counts=True)
    largest = np.argsort(-sizes, kind="stable")[:num_clusters]
    found = []
    for label, size in zip(labels[largest], sizes[largest], strict=True):
        members = np.argwhere(kept_views == label)
        best = np.argsort(-score[kept_views == label], kind="stable")[:views_per_cluster]
        found.append(Exemplars(int(label), int(size), tuple((int(i), int(v)) for i, v in members[best])))
    return found


def crop(image: UInt8[np.ndarray, "T T *c"], box: Float[np.ndarray, " 4"]) -> UInt8[np.ndarray, "h w *c"]:
    """Crop an image or a label map to a box (top, left, height, width) in fractions of its side."""
    side = len(image)
    top, left = (round(float(start) * side) for start in box[:2])
    height, width = (max(1, round(float(length) * side)) for length in box[2:])
    return np.asarray(image[top : top + height, left : left + width])


def draw_exemplars(
    found: Sequence[Exemplars],
    images: UInt8[np.ndarray, "N T T 3"],
    boxes: Float[np.ndarray, "V 4"],
    pictures: Pictures,
) -> list[list[str]]:
    """Store the views of each pseudo-label; returns their `src`."""
    return [
        [
            pictures.photo(f"view_{row.pseudo_label:04d}_{place}", crop(images[image], boxes[view]))
            for place, (image, view) in enumerate(row.views)
        ]
        for row in found
    ]
