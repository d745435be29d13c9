"""The reader that params.yaml names, on the folder that it names."""

import os
from pathlib import Path

from stages.dataset.cityscapes import list_cityscapes
from stages.dataset.cocostuff import list_cocostuff
from stages.dataset.demo import list_demo
from stages.dataset.folder import list_folder
from stages.dataset.source import DataSet
from stages.runtime.schema import Prepare

LONG_TILES = 2  # squares in a picture of Cityscapes, which is twice as wide as high


def list_data(prepare: Prepare) -> DataSet:
    """Every image of the data set, by name; none is opened.

    Raises:
        UserError: everything that is missing or contradictory.
    """
    root = Path(os.environ.get("DVC_ROOT", ".")) / prepare.path
    upright = prepare.protocol == "own"
    if prepare.reader == "demo":
        return list_demo(prepare.demo.num_train, prepare.demo.num_val)
    if prepare.reader == "cocostuff":
        return list_cocostuff(root, prepare.cocostuff.list, prepare.taxonomy, upright=upright)
    if prepare.reader == "cityscapes":
        tiles = LONG_TILES if prepare.protocol == "picie_long" else 1
        folders = prepare.cityscapes
        return list_cityscapes(root, folders.train, folders.val, prepare.taxonomy, tiles=tiles)
    return list_folder(root, prepare.split, upright=upright)
