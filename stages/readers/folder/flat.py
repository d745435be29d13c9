"""A folder of photographs without a folder images/: all of them, in subfolders of any name."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from stages.dataset.left_out import MASK
from stages.dataset.listing import MASK_WORDS
from stages.dataset.source import Findings
from stages.readers.folder.splitting import SPLITS

LABELS = "labels/"  # of the data set; the only label maps that are used


def without_masks(root: Path, names: Sequence[str], found: Findings) -> list[str]:
    """The photographs, and the label maps in `labels/`: all images but label maps in other places.

    A folder named like one, such as masks/ or gt/, has label maps too if a file
    in it is called like a photograph outside; else the name means something else, and it has photographs.

    Args:
        root: folder of the data set.
        names: all images below it, relative to it.
        found: takes the label maps, as left out, and notes on what the names suggest.
    """
    found.notes.append(f"{root}: has no folder images/; every image in it and its subfolders is a photograph")
    if split := [part for part in SPLITS if (root / part).is_dir()]:
        found.notes.append(
            f"{root}: {' and '.join(f'{part}/' for part in split)} are taken for subfolders like any other; "
            "to split by them, move them into a folder images/"
        )
    suspects: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if folder := _mask_folder(name):
            suspects[folder].append(name)
    if not suspects:
        return list(names)
    in_doubt = {name for listed in suspects.values() for name in listed}
    stems = {_stem(name) for name in names if name not in in_doubt and not name.startswith(LABELS)}
    masks = {
        name for listed in suspects.values() if any(_stem(one) in stems for one in listed) for name in listed
    }
    for name in sorted(masks):
        found.left_out.add(MASK, name)
    return [name for name in names if name not in masks]


def _mask_folder(name: str) -> str:
    """The outermost folder of a file that is named like one of label maps; empty if there is none."""
    parts = [] if name.startswith(LABELS) else name.split("/")[:-1]
    for depth, part in enumerate(parts):
        if part.lower() in MASK_WORDS:
            return "/".join(parts[: depth + 1])
    return ""


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0].lower()
