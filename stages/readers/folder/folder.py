"""A data set of one's own: a folder of images, with or without label maps for the validation images.

    root/images/**               jpg, png, webp, bmp or tif; the id of an image is its path without the suffix
    root/labels/**/<id>.png      class id of each pixel, 255 = ignore; of all validation images or of none
    root/classes.txt             one name a line; the first is class id 0

Which images are for training and which for validation: by folder (images/train, images/val, labels/val),
by list (train.txt and val.txt: an id or a path below images/ a line), or by lot (a fraction and a seed).
Label maps of training images are never looked for.
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
    """What is in the folder, by name; no image is opened.

    Args:
        root: of the data set.
        settings: `prepare` of params.yaml; `split` says how images are divided.

    Raises:
        UserError: every fault that shows in the names of the files, in the lists and in classes.txt.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; set prepare.path in params.yaml to the folder that holds images/"
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
            "images/train": "images to learn from",
            "images/val": "images to segment and, with labels/val, to evaluate on",
        }
        found.faults.append(f"{folder}: no such folder; put the {purpose.get(below, 'images')} there")
        return ()
    ids = defaultdict(list)
    for path in walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith("."):
            found.skipped["hidden"] += 1
        elif path.suffix.lower() not in SUFFIXES:
            found.skipped["no image by its suffix"] += 1
        elif not name.isprintable():  # among them names that are not UTF-8
            found.faults.append(
                f"{below}/{name!a}: the name has characters that cannot be printed; rename it"
            )
        else:
            ids[name.removesuffix(path.suffix)].append(f"{below}/{name}")
    if not ids:
        found.faults.append(f"{folder}: has no images ({', '.join(SUFFIXES)})")
    for id_, sources in ids.items():
        if len(sources) > 1:
            found.faults.append(f"{' and '.join(sorted(sources))}: share the id {id_!r}; rename one of them")
    return tuple(Item(id_, ids[id_][0]) for id_ in sorted(ids))


def _check_labels(root: Path, below: str, items: Sequence[Item], found: Findings) -> None:
    missing = [str(item.labels) for item in items if not (root / str(item.labels)).is_file()]
    if missing:
        found.faults.append(
            f"{root / below}: {len(missing)} of {len(items)} validation images have no label map "
            f"({listed(missing)}); label all of them, or none: then remove the folder"
        )


def _read_classes(root: Path, found: Findings) -> tuple[str, ...]:
    path, faults = root / "classes.txt", found.faults
    if not path.is_file():
        faults.append(f"{path}: not found, but there are label maps; name one class a line, class id 0 first")
        return ()
    before = len(faults)
    names = tuple(line.strip() for line in found.read_text(root, "classes.txt").rstrip().splitlines())
    if not names and len(faults) == before:
        faults.append(f"{path}: is empty; name one class a line, class id 0 first")
    if "" in names:
        faults.append(
            f"{path}: line {names.index('') + 1} is empty; every line names a class, class id 0 first"
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        faults.append(f"{path}: names {', '.join(map(repr, twice))} more than once; names must differ")
    if len(names) > IGNORED:
        faults.append(f"{path}: names {len(names)} classes, but class ids end at {IGNORED - 1}")
    return names
