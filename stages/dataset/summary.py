"""Statistics of the data set: counts, image sizes, class fractions, ignored pixels, skipped files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.dataset.doubts import doubts_of_files, doubts_of_labels
from stages.dataset.pack import Packed
from stages.dataset.source import DataSet
from stages.dataset.truth import IGNORED

BITS_IN_USE = "bits_per_channel"  # in use of the images with 16 bits per channel, if there are any


def summarise(
    data: DataSet, train: Sequence[Packed], val: Sequence[Packed], maps: Path, manifest: str
) -> dict[str, Any]:
    """Summarize a packed data set; shares are fractions in [0, 1].

    Args:
        data: listed data set.
        train: packed training images.
        val: packed validation images.
        maps: .npy file of the label maps, class ids uint8 [M, S, S].
        manifest: hash of the manifest.
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
        "notes": list(data.notes),
        "left_out": {
            reason: {"files": names.count, "examples": names.examples}
            for reason, names in sorted(data.left_out.items())
        },
        "warnings": [
            *doubts_of_files(data, kept_train, kept_val),
            *(
                ()
                if data.class_kinds or not data.class_names
                else doubts_of_labels(class_shares, ignored_share)
            ),
        ],
    }


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
