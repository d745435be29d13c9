"""Label maps among the images: those in a folder of their own, such as masks/ or gt/."""

import os
from collections import defaultdict
from collections.abc import Sequence

from stages.dataset.listing import MASK_WORDS, named_images

MOST = 0.5  # share of the files of such a folder that are called like an image outside


def label_maps_among(names: Sequence[str]) -> set[str]:
    """Those of the images that are label maps, by the names of their folders.

    A folder named like one of label maps has them if most of its files are called like images outside, as
    x.png or x_mask.png beside x.jpg; else the name means something else, and it has photographs.

    Args:
        names: images, relative to one folder, with slashes.
    """
    suspects: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if folder := _mask_folder(name):
            suspects[folder].append(name)
    if not suspects:
        return set()
    in_doubt = {name for listed in suspects.values() for name in listed}
    stems = {_stem(name) for name in names if name not in in_doubt}
    found = set[str]()
    for listed in suspects.values():
        if sum(not stems.isdisjoint(_partners(_stem(name))) for name in listed) >= MOST * len(listed):
            found.update(listed)
    return found


def _partners(stem: str) -> set[str]:
    """Stems that the image of a label map may have: x for x, x_mask and x.jpg."""
    return {stem, os.path.splitext(stem)[0], *named_images(stem)}


def _mask_folder(name: str) -> str:
    """The outermost folder of a file that is named like one of label maps; empty if there is none."""
    parts = name.split("/")[:-1]
    for depth, part in enumerate(parts):
        if part.lower() in MASK_WORDS:
            return "/".join(parts[: depth + 1])
    return ""


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0].lower()
