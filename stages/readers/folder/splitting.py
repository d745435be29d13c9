"""Split of user images into training and validation, by list files or by the content of each image."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stages.dataset.source import Findings, Item, RawFile
from stages.readers.folder.nearest import nearest, normal
from stages.settings.errors import listed

SPLITS = ("train", "val")


def rule_for(root: Path) -> tuple[str, str]:
    """Choose prepare.split.by for the content of the folder; return it with a reason."""
    if any((root / "images" / split).is_dir() for split in SPLITS):
        return "folder", "images/train or images/val exists"
    if any((root / f"{split}.txt").is_file() for split in SPLITS):
        return "lists", "train.txt or val.txt exists"
    if (root / "images").is_dir():
        return "fraction", "images/ has no subfolders or lists for training and validation"
    return "fraction", "there is no folder images/"


def by_lists(
    root: Path, images: Sequence[Item], found: Findings
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Split images by list files of ids or paths below images/; their order does not matter."""
    known = {normal(name): item for item in images for name in (item.id, item.source.removeprefix("images/"))}
    chosen: list[dict[str, Item]] = []
    for split in SPLITS:
        path = root / f"{split}.txt"
        lines = [line.strip() for line in found.read_text(root, path.name).splitlines() if line.strip()]
        names = [_below_images(line, known) for line in lines]
        unknown = [line for line, name in zip(lines, names, strict=True) if name not in known]
        if unknown:
            below = (normal(item.source.removeprefix("images/")) for item in images)
            near = nearest(_below_images(unknown[0], known), below)
            found.faults.append(
                f"{path}: {len(unknown)} of {len(names)} lines match no image below images/ "
                f"({listed(unknown)}){near}; correct the list or add the images"
            )
        elif not names and path.is_file():
            found.faults.append(f"{path}: is empty; add one image per line")
        chosen.append({known[name].id: known[name] for name in names if name in known})
    both = sorted(set(chosen[0]) & set(chosen[1]))
    if both:
        found.faults.append(
            f"{root}: train.txt and val.txt share {len(both)} images ({listed(both)}); training and "
            "validation images must differ: remove each image from one of the lists"
        )
    train, val = (tuple(split[id_] for id_ in sorted(split)) for split in chosen)
    return train, val


def _below_images(line: str, known: Collection[str]) -> str:
    """A line of a list as a path below images/: lists come with quotes, backslashes, or longer paths."""
    name = normal(line.strip("\"'").replace("\\", "/")).removeprefix("./")
    parts = f"/{name}".split("/images/")
    cuts = ["/images/".join(parts[start:]).removeprefix("/") for start in range(len(parts))]
    return next((cut for cut in cuts if cut in known), cuts[-1])


def by_content(
    images: Sequence[Item], hashed: Mapping[str, RawFile], val_fraction: float, seed: int, found: Findings
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Split images by a number in [0, 1) that follows from the content: validation is below the share.

    So an image stays on its side when others are added or renamed, and copies of an image share a side. The
    share of validation images is close to `val_fraction`, as in a draw. Each side has at least one image: if
    no number is below the share, the lowest one; if all are, all but the highest.

    Args:
        images: sorted by id.
        hashed: file of each image that can be read, by source.
        val_fraction: share of validation images.
        seed: another seed gives other numbers.
        found: takes the fault that there are too few images.
    """
    if not images:  # that is a fault already
        return (), ()
    numbers = {item.source: _number(item, hashed, seed) for item in images}
    lowest, highest = min(numbers.values()), max(numbers.values())
    if lowest == highest:
        found.faults.append("prepare.split.by: fraction requires at least two different images; add images")
        return tuple(images), ()
    if lowest >= val_fraction:
        found.notes.append(
            "by chance no image has a number below prepare.split.val_fraction, so that with the lowest "
            "number is for validation; it may become a training image when images are added"
        )
        is_val = {source: number == lowest for source, number in numbers.items()}
    else:
        is_val = {source: number < min(val_fraction, highest) for source, number in numbers.items()}
    train, val = (tuple(item for item in images if is_val[item.source] == side) for side in (False, True))
    return train, val


def _number(item: Item, hashed: Mapping[str, RawFile], seed: int) -> float:
    """A number in [0, 1) from the content of an image; from its name if it cannot be read."""
    file = hashed.get(item.source)
    text = f"{seed} {file.sha256 if file else item.source}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64
