"""Reader for Cityscapes in its download layout.

    root/leftImg8bit/{train,val,test,train_extra}/<city>/<id>_leftImg8bit.png
    root/gtFine/{train,val}/<city>/<id>_gtFine_labelIds.png        or root/annotations/gtFine/...

The reader uses only the fine label maps of the validation images for every taxonomy, because coarse classes
are groups of fine labels. The folders for training and validation depend on the protocol.
"""

from collections.abc import Sequence
from pathlib import Path

from stages.dataset.decode import FileDecoder
from stages.dataset.listing import walk
from stages.dataset.source import DataSet, Findings, Item
from stages.dataset.taxonomy import read_taxonomy
from stages.settings.errors import UserError, listed, no_folder
from stages.settings.schema_prepare import Prepare

CITYSCAPES = "https://www.cityscapes-dataset.com/downloads"

# Archive that contains each folder, and number of images in each split.
CITYSCAPES_ARCHIVES = {
    "train": "leftImg8bit_trainvaltest.zip",
    "val": "leftImg8bit_trainvaltest.zip",
    "test": "leftImg8bit_trainvaltest.zip",
    "train_extra": "leftImg8bit_trainextra.zip",
    "gtFine": "gtFine_trainvaltest.zip",
}
CITYSCAPES_IMAGES = {"train": 2_975, "val": 500, "test": 1_525, "train_extra": 19_998}


LONG_TILES = 2  # square tiles per image; images are twice as wide as high
IMAGE, LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"
LABEL_FOLDERS = ("gtFine", "annotations/gtFine")


def list_data(root: Path, settings: Prepare) -> DataSet:
    """List the training and validation images without opening them.

    Args:
        root: folder of the data set.
        settings: `prepare` of params.yaml, with the folders of leftImg8bit and the taxonomy.

    Raises:
        UserError: files are missing; the error lists all of them and their download pages.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: {no_folder(root)}; set prepare.path to the folder with leftImg8bit/ and gtFine/ from "
            f"{CITYSCAPES} (registration required)"
        )
    found, folders = Findings(), settings.cityscapes
    taxonomy = read_taxonomy(Path(__file__).with_name(f"{settings.taxonomy}.csv"))
    tiles = LONG_TILES if settings.protocol == "picie_long" else 1
    learned = [item for folder in folders.train for item in _list(root, folder, found)]
    scored = _with_labels(
        root, [item for folder in folders.val for item in _list(root, folder, found)], found
    )
    found.raise_faults()
    return DataSet(
        _tiled(learned, tiles), _tiled(scored, tiles), taxonomy.class_names,
        FileDecoder(root, taxonomy, upright=False), taxonomy.class_kinds,
        root=root, notes=tuple(found.notes), left_out=found.left_out,
    )  # fmt: skip


def _list(root: Path, split: str, found: Findings) -> list[Item]:
    folder = root / "leftImg8bit" / split
    folders = walk(folder, found.left_out, root) if folder.is_dir() else ()
    names = [(parent / name).relative_to(folder).as_posix() for parent, names in folders for name in names]
    ids = sorted(name.removesuffix(IMAGE) for name in names if name.endswith(IMAGE))
    expected = CITYSCAPES_IMAGES[split]
    if not ids:
        found.faults.append(
            f"{folder}: has no *{IMAGE}; the {expected:,} images are in {CITYSCAPES_ARCHIVES[split]}, "
            f"{CITYSCAPES} (login)"
        )
    for name in names:
        if not name.endswith(IMAGE):
            found.left_out.add(f"not *{IMAGE}", f"leftImg8bit/{split}/{name}")
    whole = "all" if len(ids) == expected else f"of {expected:,}; not comparable with published results"
    found.notes.append(f"leftImg8bit/{split}: {len(ids):,} images, {whole}")
    return [Item(f"{split}/{id_}", f"leftImg8bit/{split}/{id_}{IMAGE}") for id_ in ids]


def _with_labels(root: Path, items: Sequence[Item], found: Findings) -> list[Item]:
    folder = next((name for name in LABEL_FOLDERS if (root / name).is_dir()), LABEL_FOLDERS[0])
    labelled = [Item(item.id, item.source, f"{folder}/{item.id}{LABELS}") for item in items]
    absent = [item.id for item in labelled if not (root / str(item.labels)).is_file()]
    if absent:
        found.faults.append(
            f"{root / folder}: has no *{LABELS} for {len(absent):,} of {len(items):,} images "
            f"({listed(absent)}); they are in {CITYSCAPES_ARCHIVES['gtFine']}, {CITYSCAPES} (login)"
        )
    return labelled


def _tiled(items: Sequence[Item], tiles: int) -> tuple[Item, ...]:
    """Sort items by id; if an image has several tiles, append the tile number to the id."""
    return tuple(
        Item(item.id if tiles == 1 else f"{item.id}/{tile}", item.source, item.labels, tile)
        for item in sorted(items, key=lambda item: item.id)
        for tile in range(tiles)
    )
