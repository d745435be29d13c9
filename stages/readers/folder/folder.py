"""Reader for user data: a folder of images, with or without label maps of the validation images.

    root/images/**               jpg, png, webp, bmp or tif; the image id is the path without the suffix
    root/labels/**/<id>.png      class id per pixel, 255 = ignored; for all validation images or none
    root/classes.txt             one class name per line, starting with class id 0

Images are split into training and validation by folder (images/train, images/val, labels/val), by lists
(train.txt and val.txt with one id or path below images/ per line), or randomly (by a fraction and a seed).
Label maps of training images are never read.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from stages.dataset.decode import SUFFIXES, FileDecoder
from stages.dataset.source import DataSet, Findings, Item, listed, walk
from stages.dataset.taxonomy import plain
from stages.dataset.truth import IGNORED
from stages.readers.folder.splitting import SPLITS, by_lists, by_lot
from stages.settings.errors import UserError
from stages.settings.schema import Prepare


def list_data(root: Path, settings: Prepare) -> DataSet:
    """List the images in the folder without opening them.

    Args:
        root: folder of the data set.
        settings: `prepare` of params.yaml, with the split rule `split`.

    Raises:
        UserError: file names, lists or classes.txt are invalid; the error lists every fault.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; set prepare.path in params.yaml to the folder that contains images/"
        )
    found, below, split = Findings(), "", settings.split
    if split.by == "folder":
        train, val = (_list_images(root, f"images/{name}", found) for name in SPLITS)
        below = "/val"
    else:
        images = _list_images(root, "images", found)
        train, val = (
            by_lists(root, images, found)
            if split.by == "lists"
            else by_lot(images, split.val_fraction, split.seed, found)
        )
    class_names: tuple[str, ...] = ()
    if (root / f"labels{below}").is_dir():
        val = tuple(Item(item.id, item.source, f"labels{below}/{item.id}.png") for item in val)
        _check_labels(root, f"labels{below}", val, found)
        class_names = _read_classes(root, found)
    found.raise_faults()
    decode = FileDecoder(root, plain(class_names), upright=settings.protocol == "own")
    return DataSet(
        train, val, class_names, decode, other_files=tuple(found.files), root=root, skipped=found.skipped
    )


def _list_images(root: Path, below: str, found: Findings) -> tuple[Item, ...]:
    folder = root / below
    if not folder.is_dir():
        purpose = {
            "images/train": "training images",
            "images/val": "validation images",
        }
        found.faults.append(f"{folder}: no such folder; put the {purpose.get(below, 'images')} in it")
        return ()
    ids = defaultdict(list)
    for path in walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith("."):
            found.skipped["hidden"] += 1
        elif path.suffix.lower() not in SUFFIXES:
            found.skipped["no image by its suffix"] += 1
        elif not name.isprintable():  # includes names that are not UTF-8
            found.faults.append(f"{below}/{name!a}: the name has unprintable characters; rename it")
        else:
            ids[name.removesuffix(path.suffix)].append(f"{below}/{name}")
    if not ids:
        found.faults.append(f"{folder}: has no images ({', '.join(SUFFIXES)}); add images")
    for id_, sources in ids.items():
        if len(sources) > 1:
            found.faults.append(f"{' and '.join(sorted(sources))}: share the id {id_!r}; rename one of them")
    return tuple(Item(id_, ids[id_][0]) for id_ in sorted(ids))


def _check_labels(root: Path, below: str, items: Sequence[Item], found: Findings) -> None:
    missing = [str(item.labels) for item in items if not (root / str(item.labels)).is_file()]
    if missing:
        found.faults.append(
            f"{root / below}: {len(missing)} of {len(items)} validation images have no label map "
            f"({listed(missing)}); label all of them, or remove the folder"
        )


def _read_classes(root: Path, found: Findings) -> tuple[str, ...]:
    path, faults = root / "classes.txt", found.faults
    if not path.is_file():
        faults.append(f"{path}: not found, but there are label maps; add it with one class name per line")
        return ()
    before = len(faults)
    names = tuple(line.strip() for line in found.read_text(root, "classes.txt").rstrip().splitlines())
    if not names and len(faults) == before:
        faults.append(f"{path}: is empty; add one class name per line, starting with class id 0")
    if "" in names:
        faults.append(f"{path}: line {names.index('') + 1} is empty; every line must be a class name")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        faults.append(f"{path}: has {', '.join(map(repr, twice))} more than once; class names must be unique")
    if len(names) > IGNORED:
        faults.append(
            f"{path}: has {len(names)} classes, but the largest class id is {IGNORED - 1}; merge classes"
        )
    return names
