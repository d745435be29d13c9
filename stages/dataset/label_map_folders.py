"""Label maps among the images: those in a folder beside their images, such as masks/ or gt/."""

import os
from collections import defaultdict
from collections.abc import Sequence

from stages.dataset.listing import MASK_WORDS


def label_maps_among(names: Sequence[str]) -> set[str]:
    """Those of the images that are label maps, by the names of their folders.

    A folder named like one of label maps has them if a file in it is called like an image outside; else the
    name means something else, and it has photographs.

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
    return {
        name for listed in suspects.values() if any(_stem(one) in stems for one in listed) for name in listed
    }


def _mask_folder(name: str) -> str:
    """The outermost folder of a file that is named like one of label maps; empty if there is none."""
    parts = name.split("/")[:-1]
    for depth, part in enumerate(parts):
        if part.lower() in MASK_WORDS:
            return "/".join(parts[: depth + 1])
    return ""


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0].lower()
