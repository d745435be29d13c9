"""Split of user images into training and validation, by list files or at random."""

from collections.abc import Collection, Sequence
from pathlib import Path

from stages.core.seeds import numpy_generator
from stages.dataset.listing import nearest, normal
from stages.dataset.source import Findings, Item, listed

SPLITS = ("train", "val")


def rule_for(root: Path) -> tuple[str, str]:
    """Choose prepare.split.by for the content of the folder; return it with a reason."""
    if any((root / "images" / split).is_dir() for split in SPLITS):
        return "folder", "images/train or images/val exists"
    if any((root / f"{split}.txt").is_file() for split in SPLITS):
        return "lists", "train.txt or val.txt exists"
    if (root / "images").is_dir():
        return "fraction", "images/ has no subfolders or lists for training and validation"
    return "folder", "default layout"


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


def by_lot(
    images: Sequence[Item], val_fraction: float, seed: int, found: Findings
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Split images at random into training and validation, with at least one image each."""
    if len(images) < 2:
        found.faults.append("prepare.split.by: fraction requires at least two images; add images")
        return tuple(images), ()
    count = min(max(1, round(val_fraction * len(images))), len(images) - 1)
    drawn = set(numpy_generator(seed, "split").permutation(len(images))[:count].tolist())
    train, val = (
        tuple(item for place, item in enumerate(images) if (place in drawn) == is_val)
        for is_val in (False, True)
    )
    return train, val
