"""What a data set is too small for: settings that depend on the number of images."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Key = tuple[str, ...]
LEAST_IMAGES = 2  # of training: the smallest batch that settings may have; `fits` fits all from here on


class Fit(NamedTuple):
    """A value of a setting that fits a data set, or a machine."""

    key: Key
    value: int | float | str
    why: str

    @property
    def name(self) -> str:
        """The dotted key."""
        return ".".join(self.key)


def fits(params: Mapping[str, Any], num_images: int) -> Iterator[Fit]:
    """Settings of `params` that are too large for so many training images, with what they become."""
    pretrain, train = params["pretrain"], params["train"]
    largest = max(2, 2 ** (num_images.bit_length() - 2))
    batch_size = min(pretrain["batch_size"], largest)
    if pretrain["batch_size"] > largest:
        yield Fit(("pretrain", "batch_size"), largest, "at most half of the images")
        yield Fit(("pretrain", "bn_splits"), 1, "so that each group has at least two images")
    queue = max(1, num_images // 2 // batch_size) * batch_size
    for key in (("pretrain", "queue_size"), ("pretrain", "swav", "queue_size")):
        if at(params, key) > queue:
            yield Fit(key, queue, "at most half of the images, in whole batches")
    if train["batch_size"] > largest:
        yield Fit(("train", "batch_size"), largest, "at most half of the images")
    if params["global_k"] > num_images // 8:
        yield Fit(("global_k",), max(2, num_images // 8), "at least eight images per view cluster")


def at(params: Mapping[str, Any], key: Key) -> Any:
    """The value of a setting."""
    for part in key:
        params = params[part]
    return params


def advice(now: Mapping[str, Any], preset: Mapping[str, Any], num_images: int) -> Iterator[str]:
    """What the settings may become with this number of images: lower where they must, higher where they can.

    Args:
        now: the settings in use.
        preset: those of the preset that they were made from.
        num_images: number of training images.
    """
    for fit in fits(now, num_images):
        if at(now, fit.key) == fit.value:
            continue  # bn_splits, which follows from another setting
        yield f"{fit.name}: {at(now, fit.key)} is too large now; lower it to {fit.value} ({fit.why})"
    lowered = {fit.key: fit for fit in fits(preset, num_images)}
    for key in (
        ("pretrain", "batch_size"), ("pretrain", "queue_size"), ("train", "batch_size"), ("global_k",)
    ):  # fmt: skip
        wanted = lowered.get(key) or Fit(key, at(preset, key), "the value of the preset")
        if at(now, key) < wanted.value:
            yield f"{wanted.name}: {at(now, key)} could be raised to {wanted.value} ({wanted.why})"
