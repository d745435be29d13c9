"""Reader for COCO-Stuff in its download layout: COCO 2017 images, stuffthingmaps, curated image lists.

    root/images/{train2017,val2017}/*.jpg   or root/{train2017,val2017}/*.jpg
    root/stuffthingmaps/val2017/*.png       or in annotations, stuffthingmaps_trainval2017 or root
    root/curated/{train2017,val2017}/<list>.txt      one image id per line

Without a list, all images are used. Label maps of training images are never read.
"""

import hashlib
import re
from pathlib import Path

from stages.dataset.decode import FileDecoder
from stages.dataset.source import DataSet, Findings, Item
from stages.dataset.taxonomy import read_taxonomy
from stages.readers.cocostuff.parts import COCO_PARTS, LIST, Part, folder_of
from stages.settings.errors import UserError, listed, no_folder
from stages.settings.schema_prepare import Prepare

FETCH = "python -m stages.tools.fetch cocostuff --to"


def list_data(root: Path, settings: Prepare) -> DataSet:
    """List the images of the curated lists, or all images, without opening them.

    Args:
        root: folder of the data set.
        settings: `prepare` of params.yaml, with the name of the lists and the taxonomy.

    Raises:
        UserError: files are missing; the error lists all of them and their download addresses.
    """
    if not root.is_dir():
        raise UserError(f"{root}: {no_folder(root)}; download the data set with `{FETCH} {root}`")
    found, list_name = Findings(), settings.cocostuff.list
    taxonomy = read_taxonomy(Path(__file__).with_name(f"{settings.taxonomy}.csv"))
    train = _list_split(root, "train2017", list_name, found)
    val = _add_labels(root, _list_split(root, "val2017", list_name, found), found)
    found.raise_faults()
    decode = FileDecoder(root, taxonomy, upright=settings.protocol == "own")
    return DataSet(
        train, val, taxonomy.class_names, decode, taxonomy.class_kinds,
        tuple(found.files), root, tuple(found.notes), found.left_out,
    )  # fmt: skip


def _list_split(root: Path, split: str, list_name: str, found: Findings) -> tuple[Item, ...]:
    part = COCO_PARTS[f"{split} images"]
    folder, present = folder_of(root, part, split)
    if not present:
        found.faults.append(_missing(root, part, split))
    chosen = _read_list(root, split, list_name, found)
    if chosen is None:
        chosen = present
        found.notes.append(
            f"{split}: no list curated/{split}/{list_name}.txt, so all {len(present):,} images are used "
            "(ours); published results use only the images of that list"
        )
    elif present:
        absent = sorted(chosen - present)
        if absent:
            found.faults.append(
                f"{root / folder}: {len(absent):,} of the {len(chosen):,} images of curated/{split}/"
                f"{list_name}.txt are missing ({listed(absent)}); {_origin(root, part)}"
            )
        for id_ in sorted(present - chosen):
            found.left_out.add("not in the curated list", f"{folder}/{id_}.jpg")
    return tuple(Item(id_, f"{folder}/{id_}.jpg") for id_ in sorted(chosen))


def _read_list(root: Path, split: str, list_name: str, found: Findings) -> set[str] | None:
    name = f"curated/{split}/{list_name}.txt"
    if not (root / name).is_file():
        if others := sorted(str(one.relative_to(root)) for one in root.glob("curated/*/*.txt")):
            found.faults.append(
                f"{root / name}: not found, but there are {listed(others)}; correct "
                "prepare.cocostuff.list, or fetch the list; to use all images, move curated/ away"
            )
        return None
    text, part = found.read_text(root, name), COCO_PARTS[f"{split} list"]
    ids = text.split()
    odd = [id_ for id_ in ids if not re.fullmatch(r"\w+", id_)]
    if odd or not ids:
        found.faults.append(
            f"{root / name}: {f'has the line {odd[0]!r}' if odd else 'is empty'}, expected one image "
            f"id per line; {_origin(root, part)}"
        )
    known = list_name == LIST and hashlib.sha256(text.encode()).hexdigest() == part.sha256
    verdict = (
        "the published list" if known else "not the published list; not comparable with published results"
    )
    found.notes.append(f"{split}: the {len(set(ids)):,} images of {name}, {verdict}")
    return set(ids)


def _add_labels(root: Path, items: tuple[Item, ...], found: Findings) -> tuple[Item, ...]:
    part = COCO_PARTS["label maps"]
    folder, present = folder_of(root, part, "val2017")
    if not present:
        found.faults.append(_missing(root, part, "val2017"))
        return items
    absent = [item.id for item in items if item.id not in present]
    if absent:
        found.faults.append(
            f"{root / folder}: has no label map for {len(absent):,} of {len(items):,} images "
            f"({listed(absent)}); {_origin(root, part)}"
        )
    return tuple(Item(item.id, item.source, f"{folder}/{item.id}.png") for item in items)


def _missing(root: Path, part: Part, split: str) -> str:
    folders = " or ".join(place.format(split) for place in part.places)
    return f"{root}: has no {part.suffix} files in {folders}; {_origin(root, part)}"


def _origin(root: Path, part: Part) -> str:
    """Describe a published file and how to download it."""
    return f"download {part.name} ({part.what}) from {part.url}, or run `{FETCH} {root}`"
