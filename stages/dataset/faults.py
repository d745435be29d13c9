"""What was wrong with the files that were packed: damaged images are left out, all else ends `prepare`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.core.artefacts import write_csv
from stages.dataset.left_out import BAD
from stages.dataset.pack import Packed
from stages.dataset.source import DataSet, Remark
from stages.settings.errors import UserError, raise_faults


def check_faults(
    data: DataSet,
    train: Sequence[Packed],
    val: Sequence[Packed],
    changes: Iterable[str],
    most: float,
    listing: Path,
) -> None:
    """Leave damaged images out, or stop if they are too many or anything else is wrong.

    Args:
        data: listed data set, whose `left_out` takes the damaged images.
        train: packed training images.
        val: packed validation images.
        changes: faults of files that have changed since they were read.
        most: share of the images that may be damaged.
        listing: file to write if more are, for a message names the first ones alone.

    Raises:
        UserError: the data set cannot be used as it is.
    """
    packed = (*train, *val)
    damaged = [one for one in packed if one.is_damaged]
    for one in damaged:
        data.left_out.add(BAD, *_damage(one))
    faults = [fault for one in packed if one.faults and not one.is_damaged for fault in one.faults]
    if len(damaged) > most * len(packed):
        write_csv(listing, data.left_out.table())
        too_many = (
            f"{data.root}: {len(damaged):,} of {len(packed):,} images are damaged, more than "
            f"prepare.most_damaged: {most}; repair or remove them, or raise it; {listing} names all of them"
        )
        faults = [too_many, *(fault for one in packed for fault in one.faults)]
    raise_faults((*faults, *changes))
    for split, rows in (("training", train), ("validation", val)):
        if all(one.is_damaged for one in rows):
            raise UserError(f"{data.root}: all {split} images are damaged; repair or replace them")
    if all(one.is_damaged or Remark.CONSTANT in one.remarks for one in train):
        raise UserError(f"{data.root}: every training image has a single color; there is nothing to learn")


def _damage(one: Packed) -> tuple[str, str]:
    """The damaged file of an image, which may be its label map, and what is wrong with it."""
    fault = one.faults[0]
    name = one.item.source if fault.startswith(f"{one.item.source}: ") else str(one.item.labels)
    return name, fault.removeprefix(f"{name}: ")
