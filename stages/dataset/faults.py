"""What was wrong with the files that were packed: damaged images are left out, all else ends `prepare`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.dataset.left_out import BAD, LeftOut
from stages.dataset.pack import Packed
from stages.dataset.source import Remark
from stages.settings.errors import UserError, raise_faults


def leave_out_damaged(left_out: LeftOut, packed: Iterable[Packed]) -> None:
    """Add the damaged files to those that are not used."""
    for one in packed:
        if one.is_damaged:
            left_out.add(BAD, *_damage(one))


def too_many_damaged(packed: Sequence[Packed], most: float) -> bool:
    """Whether more than a share of the images is damaged."""
    return sum(one.is_damaged for one in packed) > most * len(packed)


def check_faults(
    root: Path | None,
    train: Sequence[Packed],
    val: Sequence[Packed],
    changes: Iterable[str],
    most: float,
    listing: Path | None,
) -> None:
    """Check that at most a few images are damaged, and that nothing else is wrong.

    Args:
        root: folder of the data set, for messages.
        train: packed training images.
        val: packed validation images.
        changes: faults of files that have changed since they were read.
        most: share of the images that may be damaged, for messages.
        listing: file that names all damaged images, if they are more, because a message names the first ones
            alone; None if they are not.

    Raises:
        UserError: the data set cannot be used as it is.
    """
    packed = (*train, *val)
    faults = [fault for one in packed if one.faults and not one.is_damaged for fault in one.faults]
    if listing is not None:
        too_many = (
            f"{root}: {sum(one.is_damaged for one in packed):,} of {len(packed):,} images are damaged, more "
            f"than prepare.most_damaged: {most}; repair or remove them, or raise it; {listing} names all of "
            "them"
        )
        faults = [too_many, *(fault for one in packed for fault in one.faults)]
    raise_faults((*faults, *changes))
    for split, rows in (("training", train), ("validation", val)):
        if all(one.is_damaged for one in rows):
            raise UserError(f"{root}: all {split} images are damaged; repair or replace them")
    if all(one.is_damaged or Remark.CONSTANT in one.remarks for one in train):
        raise UserError(f"{root}: every training image has a single color; there is nothing to learn")


def _damage(one: Packed) -> tuple[str, str]:
    """The damaged file of an image, which may be its label map, and what is wrong with it."""
    fault = one.faults[0]
    name = one.item.source if fault.startswith(f"{one.item.source}: ") else str(one.item.labels)
    return name, fault.removeprefix(f"{name}: ")
