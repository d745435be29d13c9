"""A data set of one's own: a folder of images, with or without label maps for the validation images.

    root/images/train/**  root/images/val/**     jpg, png, webp, bmp or tif; the id of an image is its path
                                                 below the split, without the suffix
    root/labels/val/<id>.png                     class id of each pixel, 255 = ignore; all images or none
    root/classes.txt                             one name a line; the first is class id 0

Label maps of training images are never looked for.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stages.dataset.decode import decode_image, decode_labels
from stages.dataset.source import DataSet, Decoded, Item, RawFile
from stages.dataset.store import Split
from stages.dataset.truth import IGNORED
from stages.runtime.errors import UserError, raise_faults

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
LABELS = "labels/val"
MOST_NAMES = 10  # that one message lists


def list_folder(root: Path) -> DataSet:
    """What is in the folder, by name; no image is opened.

    Raises:
        UserError: every fault that shows in the names of the files and in classes.txt.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; set prepare.path in params.yaml to the folder that holds images/"
        )
    faults: list[str] = []
    train, val = _list_split(root, "train", faults), _list_split(root, "val", faults)
    class_names: tuple[str, ...] = ()
    other_files: tuple[RawFile, ...] = ()
    if (root / LABELS).is_dir():
        val = tuple(Item(item.id, item.source, f"{LABELS}/{item.id}.png") for item in val)
        faults += _missing_labels(root, val)
        class_names, other_files = _read_classes(root, faults)
    raise_faults(faults)
    return DataSet(train, val, class_names, FolderDecoder(root, len(class_names)), other_files=other_files)


@dataclass(frozen=True)
class FolderDecoder:
    """Reads one image of the folder and, where it has one, its label map."""

    root: Path
    num_classes: int

    def __call__(self, item: Item) -> Decoded:
        """Decode, with all faults of both files.

        Raises:
            UserError: a file cannot be read, or the two differ in size.
        """
        faults: list[str] = []
        files: list[RawFile] = []
        image, labels = None, None
        try:
            image = decode_image(self._read(item.source, files))
        except (UserError, OSError) as error:
            faults.append(f"{item.source}: {_reason(error)}")
        if item.labels is not None:
            try:
                labels = decode_labels(self._read(item.labels, files), self.num_classes)
            except (UserError, OSError) as error:
                faults.append(f"{item.labels}: {_reason(error)}")
        if image is not None and labels is not None and image.size != labels.shape[::-1]:
            faults.append(_other_size(item, image, labels))
        raise_faults(faults)
        assert image is not None
        return Decoded(image, labels, tuple(files))

    def _read(self, name: str, files: list[RawFile]) -> bytes:
        content = (self.root / name).read_bytes()
        files.append(RawFile(name, len(content), hashlib.sha256(content).hexdigest()))
        return content


def _reason(error: UserError | OSError) -> str:
    return str(error) if isinstance(error, UserError) else f"cannot be read ({error.strerror})"


def _other_size(item: Item, image: Image.Image, labels: np.ndarray) -> str:
    return (
        f"{item.labels}: is {labels.shape[1]} x {labels.shape[0]} px, but {item.source} is "
        f"{image.width} x {image.height} px as displayed; label maps must match their images"
    )


def _list_split(root: Path, split: Split, faults: list[str]) -> tuple[Item, ...]:
    folder = root / "images" / split
    if not folder.is_dir():
        purpose = "learn from" if split == "train" else "segment and, with labels/val, to evaluate on"
        faults.append(f"{folder}: no such folder; put the images to {purpose} there")
        return ()
    ids = defaultdict(list)
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if not name.isprintable():  # among them names that are not UTF-8
            faults.append(
                f"images/{split}/{name!a}: the name has characters that cannot be printed; rename it"
            )
        elif path.suffix.lower() in SUFFIXES:
            ids[name.removesuffix(path.suffix)].append(f"images/{split}/{name}")
    if not ids:
        faults.append(f"{folder}: has no images ({', '.join(SUFFIXES)})")
    for id_, sources in ids.items():
        if len(sources) > 1:
            faults.append(f"{' and '.join(sorted(sources))}: share the id {id_!r}; rename one of them")
    return tuple(Item(id_, ids[id_][0]) for id_ in sorted(ids))


def _walk(folder: Path) -> Iterator[Path]:
    """Files below `folder`, through links, without hidden ones."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back to a folder above itself
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _missing_labels(root: Path, items: Sequence[Item]) -> list[str]:
    missing = [str(item.labels) for item in items if not (root / str(item.labels)).is_file()]
    if not missing:
        return []
    shown = ", ".join(missing[:MOST_NAMES]) + (", ..." if len(missing) > MOST_NAMES else "")
    return [
        f"{root / LABELS}: {len(missing)} of {len(items)} validation images have no label map ({shown}); "
        "label all of them, or none: then remove the folder"
    ]


def _read_classes(root: Path, faults: list[str]) -> tuple[tuple[str, ...], tuple[RawFile, ...]]:
    path = root / "classes.txt"
    try:
        content = path.read_bytes()
        names = tuple(line.strip() for line in content.decode("utf-8-sig").rstrip().splitlines())
    except FileNotFoundError:
        faults.append(f"{path}: not found, but there are label maps; name one class a line, class id 0 first")
        return (), ()
    except UnicodeDecodeError:
        faults.append(f"{path}: is not UTF-8 text; save it as such")
        return (), ()
    if not names:
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
    return names, (RawFile("classes.txt", len(content), hashlib.sha256(content).hexdigest()),)
