"""A stored confusion matrix with what belongs to it, ready to be scored."""

from collections.abc import Iterator
from pathlib import Path

from stages.dataset.truth import read_classes
from stages.runtime.errors import raise_faults
from stages.scoring.confusion_file import Stored, read_confusion
from stages.scoring.outputs import Counted


def read_counted(path: Path, matched_on: Path | None, classes: Path | None, *, transposed: bool) -> Counted:
    """A stored confusion matrix with what belongs to it.

    Args:
        path: of the matrix.
        matched_on: another one, which decides the matching.
        classes: CSV of id, name and kind; without it nobody knows what is a thing.
        transposed: lines of matrices are clusters and columns classes.

    Raises:
        UserError: a file is missing or damaged, or they do not belong together.
    """
    stored = read_confusion(path, transposed=transposed)
    decides = read_confusion(matched_on, transposed=transposed) if matched_on else stored
    count = len(stored.confusion)
    names = stored.class_names or tuple(f"class {index}" for index in range(count))
    kinds: tuple[str, ...] = ("",) * count
    if classes:
        names, kinds = read_classes(classes, "see the option --classes")
    raise_faults(_misfits(stored, decides, path=path, matched_on=matched_on, classes=classes, names=names))
    return Counted(stored.confusion, decides.confusion, names, kinds)


def _misfits(
    stored: Stored,
    decides: Stored,
    *,
    path: Path,
    matched_on: Path | None,
    classes: Path | None,
    names: tuple[str, ...],
) -> Iterator[str]:
    if stored.confusion.shape != decides.confusion.shape:
        yield (
            f"{matched_on}: has {decides.size}, but {path} has {stored.size}; "
            "name the matrix of another prediction of the same"
        )
    if classes and len(names) != len(stored.confusion):
        yield (
            f"{classes}: names {len(names)} classes, but {path} has {stored.size}; name every class, "
            "or turn the matrix with --transposed"
        )
    elif classes and stored.class_names and names != stored.class_names:
        index = next(
            i for i, pair in enumerate(zip(names, stored.class_names, strict=True)) if len(set(pair)) > 1
        )
        yield (
            f"{classes}: calls class {index} {names[index]!r}, but {path} calls it "
            f"{stored.class_names[index]!r}; name the classes of this matrix, in its order"
        )
