"""Images of one's own into training and validation: by the lists of their owner, or by lot."""

from collections.abc import Sequence
from pathlib import Path

from stages.core.seeds import numpy_generator
from stages.dataset.source import Findings, Item, listed

SPLITS = ("train", "val")


def rule_for(root: Path) -> tuple[str, str]:
    """The value of prepare.split.by that fits what is in the folder, and why."""
    if any((root / "images" / split).is_dir() for split in SPLITS):
        return "folder", "there is images/train or images/val"
    if any((root / f"{split}.txt").is_file() for split in SPLITS):
        return "lists", "there is train.txt or val.txt"
    if (root / "images").is_dir():
        return "fraction", "there is images/, without folders or lists for training and validation"
    return "folder", "the usual layout"


def by_lists(
    root: Path, images: Sequence[Item], found: Findings
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Each list names images by id or by path below images/; order does not matter."""
    known = {name: item for item in images for name in (item.id, item.source.removeprefix("images/"))}
    chosen: list[dict[str, Item]] = []
    for split in SPLITS:
        path = root / f"{split}.txt"
        names = [line.strip() for line in found.read_text(root, path.name).splitlines() if line.strip()]
        unknown = [name for name in names if name not in known]
        if unknown:
            found.faults.append(
                f"{path}: {len(unknown)} of {len(names)} lines name no image below images/ "
                f"({listed(unknown)}); correct the list or add the images"
            )
        elif not names and path.is_file():
            found.faults.append(f"{path}: is empty; name one image a line")
        chosen.append({known[name].id: known[name] for name in names if name in known})
    both = sorted(set(chosen[0]) & set(chosen[1]))
    if both:
        found.faults.append(
            f"{root}: train.txt and val.txt both name {len(both)} images ({listed(both)}); an image that was "
            "learned from proves nothing: take it out of one of them"
        )
    unlisted = len(images) - len(set(chosen[0]) | set(chosen[1]))
    if unlisted:
        found.skipped["in neither list"] += unlisted
    train, val = (tuple(split[id_] for id_ in sorted(split)) for split in chosen)
    return train, val


def by_lot(
    images: Sequence[Item], val_fraction: float, seed: int, found: Findings
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Images for training and validation, the latter drawn; at least one of each."""
    if len(images) < 2:
        found.faults.append("prepare.split.by: fraction needs two images or more; add images")
        return tuple(images), ()
    count = min(max(1, round(val_fraction * len(images))), len(images) - 1)
    drawn = set(numpy_generator(seed, "split").permutation(len(images))[:count].tolist())
    train, val = (
        tuple(item for place, item in enumerate(images) if (place in drawn) == is_val)
        for is_val in (False, True)
    )
    return train, val
