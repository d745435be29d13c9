"""Reading of packed images: a memory map and its index.

Separate from the decoders, so that changing a raw-data reader does not invalidate the training stages.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.core.artefacts import read_array, read_csv
from stages.settings.errors import UserError

IMAGES, INDEX = "images.npy", "index.csv"  # in the folder of each split
COLUMNS = ("id", "source", "width", "height", "sha256")
TEXT_COLUMNS = ("id", "source", "sha256")  # an id can be 0042
REMEDY = "delete the folder and run `dvc repro` to make it again"


def open_images(folder: Path) -> np.ndarray:
    """The images of one split, uint8 RGB [N, S, S, 3], memory-mapped read-only.

    Raises:
        UserError: a file is missing or damaged, is not a stack of square images, or the index does not have
            one row per image.
    """
    path = folder / IMAGES
    images = read_array(path, memory_map=True)
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1] != images.shape[2]
        or images.shape[3] != 3
    ):
        raise UserError(
            f"{path}: holds {images.dtype} {list(images.shape)}, "
            f"expected square images uint8 [N, S, S, 3]; {REMEDY}"
        )
    rows = len(read_index(folder))
    if rows != len(images):
        raise UserError(f"{path}: has {len(images)} images, but {INDEX} has {rows} rows; {REMEDY}")
    return images


def read_index(folder: Path) -> pd.DataFrame:
    """The index of one split, row i for image i, sorted by id.

    Columns: id, source (relative to the data set), width and height (px, as displayed), sha256 (of the file).

    Raises:
        UserError: the file is missing, is not a CSV table, or has the wrong columns.
    """
    path = folder / INDEX
    index = read_csv(path, TEXT_COLUMNS, damaged=REMEDY)
    if tuple(index.columns) != COLUMNS:
        raise UserError(
            f"{path}: has columns {', '.join(index.columns)}, expected {', '.join(COLUMNS)}; {REMEDY}"
        )
    return index
