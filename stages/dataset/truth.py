"""Label maps and class names of the validation images: for evaluation and the report alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.runtime.artefacts import read_array, read_json, write_json
from stages.runtime.errors import UserError

IGNORED = 255  # of a label map: pixels that no score counts
REMEDY = "delete the folder and run `dvc repro` to make it again"


@dataclass(frozen=True)
class Truth:
    """What the validation images show, by annotation.

    Attributes:
        class_names: the name of class id i at place i; empty where the data set has no labels.
        maps: class ids uint8 [M, S, S], `IGNORED` where there is none; a read-only memory map.
    """

    class_names: tuple[str, ...]
    maps: np.ndarray

    @property
    def has_labels(self) -> bool:
        """Whether the data set came with labels."""
        return bool(self.class_names)


def write_class_names(folder: Path, class_names: tuple[str, ...]) -> None:
    """Write classes.json beside the maps (val.npy), which are packed straight into the folder."""
    write_json(folder / "classes.json", {"classes": list(class_names), "ignored": IGNORED})


def read_truth(folder: Path) -> Truth:
    """Read label maps and class names.

    Raises:
        UserError: a file is missing or damaged, or is not what `prepare` writes.
    """
    content = read_json(folder / "classes.json")
    maps = read_array(folder / "val.npy", memory_map=True)
    names = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{folder / 'classes.json'}: has no list of class names under 'classes'; {REMEDY}")
    if maps.dtype != np.uint8 or maps.ndim != 3 or maps.shape[1] != maps.shape[2]:
        raise UserError(
            f"{folder / 'val.npy'}: holds {maps.dtype} {list(maps.shape)}, expected square label maps "
            f"uint8 [M, S, S]; {REMEDY}"
        )
    return Truth(tuple(names), maps)
