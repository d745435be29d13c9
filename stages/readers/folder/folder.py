"""Reader for user data: a folder of images, with or without label maps of the validation images.

    root/images/**               jpg, png, webp, avif, bmp or tif; the image id is the path without the suffix
    root/labels/**/<id>.png      class id per pixel, 255 = ignored; for all validation images or none
    root/classes.txt             one class name per line, starting with class id 0
    root/labels.csv              optional: value,class for label maps with other values or colors #rrggbb

Images are split into training and validation by folder (images/train, images/val, labels/val), by lists
(train.txt and val.txt with one id or path below images/ per line), or by a fraction, which draws from the
content of each image and a seed. Without a folder images/, a fraction takes all images below root.
Label maps of training images are never read. docs/files.md says what is done with every oddity.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from stages.dataset.decode import FileDecoder
from stages.dataset.label_map_folders import label_maps_among
from stages.dataset.left_out import (
    ELSEWHERE,
    MASK,
    MISPLACED_LABELS,
    SPARE_LABELS,
    TRAIN_LABELS,
    UNLISTED,
    is_odd,
    printable,
)
from stages.dataset.listing import SUFFIXES, list_images
from stages.dataset.raw_files import hash_names, known_files
from stages.dataset.source import DataSet, Findings, Item, RawFile
from stages.dataset.taxonomy import plain
from stages.readers.folder.class_names import CLASSES, MAPPING, read_taxonomy
from stages.readers.folder.nearest import nearest, normal
from stages.readers.folder.splitting import SPLITS, by_content, by_lists
from stages.settings.errors import UserError, listed, no_folder
from stages.settings.schema_prepare import Prepare

RESERVED = (CLASSES, MAPPING, "train.txt", "val.txt")  # files of the data set itself
SPLIT_BY_FOLDER = (  # remedy for images that were added after labeling
    "remove the folder, or split by folders (images/train, images/val, labels/val) and add to images/train "
    "alone: docs/photographs.md, Adding photographs"
)


def list_data(root: Path, settings: Prepare) -> DataSet:
    """List the images in the folder; a split by content reads every file, but decodes none.

    Args:
        root: folder of the data set.
        settings: `prepare` of params.yaml, with the split rule `split`.

    Raises:
        UserError: file names, lists or classes.txt are invalid; the error lists every fault.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: {no_folder(root)}; set prepare.path in params.yaml to the folder of your images"
        )
    found, split = Findings(), settings.split
    by_folder = (*(f"images/{part}" for part in SPLITS), "labels/val")
    apart = by_folder if split.by == "folder" else ("images", "labels")
    names = list_images(root, found.left_out, RESERVED, apart)
    if split.by != "lists":  # a list says itself what is an image
        names = _without_label_maps(names, found, is_flat=not (root / "images").is_dir())
    hashed: dict[str, RawFile] = {}
    labels = "labels"
    if split.by == "folder":
        train, val = (_images(root, f"images/{part}", names, found) for part in SPLITS)
        labels = "labels/val"
    elif split.by == "lists":
        train, val = by_lists(root, _images(root, "images", names, found), found)
    else:
        if (root / "images").is_dir():
            images = _images(root, "images", names, found)
        else:
            _note_flat(root, found)
            photographs = [name for name in names if not name.startswith("labels/")]
            images = _by_id(root, "", photographs, found)
        hashed = hash_names(root, [item.source for item in images], known_files(root))
        train, val = by_content(images, hashed, split.val_fraction, split.seed, found)
    taxonomy, lacks_maps_in = plain(()), ""
    if (root / labels).is_dir():
        val = _with_labels(root, labels, val, names, found, is_drawn=split.by == "fraction")
        taxonomy = read_taxonomy(root, found)
    elif (root / CLASSES).is_file():
        lacks_maps_in = labels
    _name_the_rest(root, names, train, val, split.by, found)
    found.raise_faults()
    decode = FileDecoder(root, taxonomy, upright=settings.protocol == "own")
    return DataSet(
        train, val, taxonomy.class_names, decode, other_files=tuple(found.files), root=root,
        notes=tuple(found.notes), left_out=found.left_out, hashed=hashed, lacks_maps_in=lacks_maps_in,
    )  # fmt: skip


def _without_label_maps(names: Sequence[str], found: Findings, *, is_flat: bool) -> list[str]:
    """Names without the label maps among the photographs; those in labels/ are not among them."""
    places = (name for name in names if not name.startswith("labels/"))
    masks = label_maps_among([name for name in places if is_flat or name.startswith("images/")])
    for name in sorted(masks):
        found.left_out.add(MASK, name)
    return [name for name in names if name not in masks]


def _note_flat(root: Path, found: Findings) -> None:
    """Say what is taken for photographs, and what the names of folders suggest that is not done."""
    found.notes.append(f"{root}: has no folder images/; every image in it and its subfolders is a photograph")
    if split := [part for part in SPLITS if (root / part).is_dir()]:
        found.notes.append(
            f"{root}: {' and '.join(f'{part}/' for part in split)} are taken for subfolders like any other; "
            "to split by them, move them into a folder images/"
        )


def _images(root: Path, below: str, names: Sequence[str], found: Findings) -> tuple[Item, ...]:
    """The images below a folder, by id."""
    folder = root / below
    if not folder.is_dir():
        purpose = {
            "images/train": "training images",
            "images/val": "validation images",
        }
        found.faults.append(f"{folder}: {no_folder(folder)}; put the {purpose.get(below, 'images')} in it")
        return ()
    inside = [name for name in names if name.startswith(f"{below}/")]
    return _by_id(folder, f"{below}/", inside, found)


def _by_id(folder: Path, prefix: str, names: Sequence[str], found: Findings) -> tuple[Item, ...]:
    """The images of a folder, by id: the name without `prefix` and suffix."""
    before, ids = len(found.faults), defaultdict(list)
    for name in names:
        if is_odd(name):
            found.faults.append(
                f"{printable(name)}: the name has control characters or is not UTF-8; rename it"
            )
        ids[name.removeprefix(prefix).removesuffix(Path(name).suffix)].append(name)
    if not ids and len(found.faults) == before:
        reasons = found.left_out.sentence()
        found.faults.append(f"{folder}: has no images ({', '.join(SUFFIXES)}){reasons}; add images")
    for sources in ids.values():
        if len(sources) > 1:
            found.faults.append(
                f"{listed(sorted(sources))}: have the same name but for the suffix; rename one or move it "
                "away (label maps belong in labels/)"
            )
    return tuple(Item(id_, ids[id_][0]) for id_ in sorted(ids))


def _label_maps(below: str, names: Sequence[str]) -> dict[str, str]:
    """Label maps below a folder, by their id in composed form."""
    return {
        normal(name.removeprefix(f"{below}/").removesuffix(Path(name).suffix)): name
        for name in names
        if name.startswith(f"{below}/") and name.lower().endswith(".png")
    }


def _with_labels(
    root: Path, below: str, val: Sequence[Item], names: Sequence[str], found: Findings, *, is_drawn: bool
) -> tuple[Item, ...]:
    """Give every validation image its label map; names match in any Unicode normal form."""
    maps = _label_maps(below, names)
    labelled = tuple(Item(item.id, item.source, maps.get(normal(item.id))) for item in val)
    missing = [f"{below}/{item.id}.png" for item in labelled if item.labels is None]
    if missing:
        beside = [name for name in names if name.startswith("labels/")]
        near = nearest(normal(missing[0]), beside) if len(missing) == len(val) else ""
        remedy = SPLIT_BY_FOLDER if is_drawn and len(missing) < len(val) else "or remove the folder"
        found.faults.append(
            f"{root / below}: {len(missing)} of {len(val)} validation images have no label map "
            f"({listed(missing)}){near}; label all of them, {remedy}"
        )
    return labelled


def _name_the_rest(
    root: Path,
    names: Sequence[str],
    train: Sequence[Item],
    val: Sequence[Item],
    by: str,
    found: Findings,
) -> None:
    """Count the images that are in no split, which is drawn `by`, and the label maps that are never read."""
    used = {name for item in (*train, *val) for name in (item.source, item.labels)}
    learned, scored = ({normal(item.id) for item in split} for split in (train, val))
    rest = [name for name in names if name not in used]
    # A file that is used through a link is there under two names.
    real = {os.path.realpath(root / str(name)) for name in used if name} if rest else set()
    for name in rest:
        if os.path.realpath(root / name) in real:
            continue
        top, _, inner = name.partition("/")
        if top == "labels":
            id_ = normal(inner.removesuffix(Path(name).suffix))
            is_train = id_ in learned or id_.removeprefix("train/") in learned
            reason = TRAIN_LABELS if is_train else SPARE_LABELS
            found.left_out.add(MISPLACED_LABELS if by == "folder" and id_ in scored else reason, name)
        else:
            found.left_out.add(UNLISTED if by == "lists" and top == "images" else ELSEWHERE, name)
