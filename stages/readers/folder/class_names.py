"""classes.txt and labels.csv of a folder: names of classes, and which class a value in a label map is."""

from pathlib import Path

from stages.dataset.source import Findings
from stages.dataset.taxonomy import Taxonomy, mapped, plain
from stages.dataset.truth import IGNORED
from stages.settings.errors import UserError

CLASSES, MAPPING = "classes.txt", "labels.csv"
NO_CLASS = "__ignore__"  # labelme's name of id -1, the first line of its class files


def read_taxonomy(root: Path, found: Findings) -> Taxonomy:
    """The classes of the folder; `found` takes what is wrong with its files."""
    names = _read_classes(root, found)
    if not (root / MAPPING).is_file():
        return plain(names)
    text = found.read_text(root, MAPPING)
    try:
        return mapped(names, text)
    except UserError as fault:
        found.faults.append(f"{root / MAPPING}: {fault}")
        return plain(names)


def _read_classes(root: Path, found: Findings) -> tuple[str, ...]:
    path, faults = root / CLASSES, found.faults
    if not path.is_file():
        faults.append(f"{path}: not found, but there are label maps; add it with one class name per line")
        return ()
    before = len(faults)
    names = tuple(line.strip() for line in found.read_text(root, CLASSES).rstrip().splitlines())
    first = 1  # line of class id 0
    if names and names[0] == NO_CLASS:
        found.notes.append(
            f"{CLASSES}: line 1 is {NO_CLASS}, labelme's name of what has no class; class id 0 is line 2, "
            f"{', '.join(names[1:2])}"
        )
        names, first = names[1:], 2
    if not names and len(faults) == before:
        faults.append(f"{path}: is empty; add one class name per line, starting with class id 0")
    if "" in names:
        number = names.index("") + first
        faults.append(f"{path}: line {number} is empty; every line must be a class name")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        faults.append(f"{path}: has {', '.join(map(repr, twice))} more than once; class names must be unique")
    if len(names) > IGNORED:
        faults.append(
            f"{path}: has {len(names)} classes, but the largest class id is {IGNORED - 1}; merge classes"
        )
    return names
