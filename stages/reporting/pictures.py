"""Pictures put together from tiles, on a clear background: they lie well on a light and on a dark page."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

GREY = (118, 122, 128, 255)  # readable on white and on black
GAP_PX = 6
NAME_PX = 92
FONT_PX = 15
Tile = UInt8[np.ndarray, "h w 3"]


class Row(NamedTuple):
    """A named line of tiles; label maps keep their flat colours when resized, photographs are smoothed."""

    name: str
    tiles: UInt8[np.ndarray, "n h w 3"]
    is_labels: bool


def panel(rows: Sequence[Row], *, tile_px: int, columns: int) -> Image.Image:
    """Rows of tiles, column i of every row for image i; what goes beyond `columns` follows below.

    Args:
        rows: equally many tiles in each.
        tile_px: side of a tile in the picture.
        columns: tiles in a line.
    """
    count, pitch = len(rows[0].tiles), tile_px + GAP_PX
    num_blocks = -(-count // columns)
    block_px = len(rows) * pitch + 2 * GAP_PX
    picture = Image.new(
        "RGBA", (NAME_PX + min(count, columns) * pitch - GAP_PX, num_blocks * block_px - 3 * GAP_PX)
    )
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_PX)
    for index in range(count):
        block, column = divmod(index, columns)
        for line, row in enumerate(rows):
            corner = (NAME_PX + column * pitch, block * block_px + line * pitch)
            picture.paste(_resized(row.tiles[index], tile_px, is_labels=row.is_labels), corner)
            if column == 0:
                draw.text((NAME_PX - 2 * GAP_PX, corner[1] + tile_px // 2), row.name, GREY, font, anchor="rm")
    return picture


def strip(tiles: Sequence[Tile], *, tile_px: int, columns: int) -> Image.Image:
    """Photographs side by side, room for `columns`."""
    pitch = tile_px + GAP_PX
    picture = Image.new("RGBA", (columns * pitch - GAP_PX, tile_px))
    for column, tile in enumerate(tiles):
        picture.paste(_resized(tile, tile_px, is_labels=False), (column * pitch, 0))
    return picture


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG, which has no date or author in it."""
    picture.save(path, optimize=True)


def _resized(tile: Tile, side_px: int, *, is_labels: bool) -> Image.Image:
    filter_ = Image.Resampling.NEAREST if is_labels else Image.Resampling.BICUBIC
    return Image.fromarray(np.ascontiguousarray(tile)).resize((side_px, side_px), filter_)
