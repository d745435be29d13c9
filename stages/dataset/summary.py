"""Statistics of the data set: counts, image sizes, class fractions, ignored pixels, skipped files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.dataset.doubts import doubts_of_files, doubts_of_labels
from stages.dataset.pack import Packed
from stages.dataset.protocols import Protocol, unused_share
from stages.dataset.source import DataSet
from stages.dataset.truth import IGNORED

BITS_IN_USE = "bits_per_channel"  # in use of the images with 16 bits per channel, if there are any
LEAST_UNUSED = 0.005  # mean share of an image that is worth a word
MUCH_UNUSED = 0.4  # and a warning; of photographs of 3:2 a third is not used, of 16:9 it is 44 %


def summarise(
    data: DataSet,
    train: Sequence[Packed],
    val: Sequence[Packed],
    maps: Path,
    manifest: str,
    protocol: Protocol,
) -> dict[str, Any]:
    """Summarize a packed data set; shares are fractions in [0, 1].

    Args:
        data: listed data set.
        train: packed training images.
        val: packed validation images.
        maps: .npy file of the label maps, class ids uint8 [M, S, S].
        manifest: hash of the manifest.
        protocol: resize and crop protocol.
    """
    counts = np.zeros(IGNORED + 1, np.int64)
    for labels, one in zip(np.load(maps, mmap_mode="r"), val, strict=True):
        if not one.faults:
            counts += np.bincount(labels.ravel(), minlength=IGNORED + 1)
    labelled = int(counts[:IGNORED].sum())
    kept_train, kept_val = ([one for one in rows if not one.faults] for rows in (train, val))
    class_shares = {
        name: int(count) / max(labelled, 1) for name, count in zip(data.class_names, counts, strict=False)
    }
    ignored_share = int(counts[IGNORED]) / int(counts.sum())
    unused = _unused_share((*kept_train, *kept_val), protocol)
    cut = f"images are cut to their central square: on average {unused:.0%} of an image is not used"
    is_much = unused > MUCH_UNUSED and protocol == "own"  # a published protocol cuts as it must
    return {
        "train_images": len(kept_train),
        "val_images": len(kept_val),
        "classes": len(data.class_names),
        "labelled_share": labelled / int(counts.sum()),
        "ignored_share": ignored_share,
        "manifest_sha256": manifest,
        **({} if data.bits is None else {BITS_IN_USE: data.bits}),
        "class_shares": class_shares,
        "sizes_px": {"train": _sizes(kept_train), "val": _sizes(kept_val)},
        "notes": [*data.notes, *([cut] if unused >= LEAST_UNUSED and not is_much else [])],
        "left_out": {
            reason: {"files": names.count, "examples": names.examples}
            for reason, names in sorted(data.left_out.items())
        },
        "warnings": [
            *doubts_of_files(data, kept_train, kept_val),
            *([f"{cut}; if their ends matter, split them into squares"] if is_much else []),
            *(
                ()
                if data.class_kinds or not data.class_names
                else doubts_of_labels(class_shares, ignored_share)
            ),
        ],
    }


def _unused_share(packed: Sequence[Packed], protocol: Protocol) -> float:
    """Return the mean share of an image that lies outside of its square."""
    return sum(unused_share(one.width, one.height, protocol) for one in packed) / len(packed)


def _sizes(packed: Sequence[Packed]) -> dict[str, dict[str, int]]:
    """Return minimum, median and maximum side lengths of the original images."""
    sides = {"width": [one.width for one in packed], "height": [one.height for one in packed]}
    return {
        name: {
            "min": min(values),
            "median": sorted(values)[len(values) // 2],
            "max": max(values),
        }
        for name, values in sides.items()
    }
