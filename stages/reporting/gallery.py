"""Which views stand for a pseudo-label: the kept ones nearest to its centre (4.2.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from stages.reporting.pictures import save, strip

NOT_KEPT = -1
VIEW_PX = 96


@dataclass(frozen=True)
class Exemplars:
    """One pseudo-label, its number of kept views, and (image, view) of the best of them, best first."""

    pseudo_label: int
    num_kept: int
    views: tuple[tuple[int, int], ...]

    @property
    def file(self) -> str:
        """The name of the picture."""
        return f"views_{self.pseudo_label:04d}.png"


def exemplars(
    kept_views: Int32[np.ndarray, "N V"],
    score: Float32[np.ndarray, "N V"],
    *,
    num_clusters: int,
    views_per_cluster: int,
) -> list[Exemplars]:
    """The `num_clusters` pseudo-labels with most kept views, largest first; ties go to the lower id.

    Args:
        kept_views: the pseudo-label where a view is kept, `NOT_KEPT` elsewhere.
        score: cosine of a view to its own centre.
        num_clusters: at most so many pseudo-labels.
        views_per_cluster: at most so many views of each, highest score first.
    """
    labels, sizes = np.unique(kept_views[kept_views != NOT_KEPT], return_counts=True)
    largest = np.argsort(-sizes, kind="stable")[:num_clusters]
    found = []
    for label, size in zip(labels[largest], sizes[largest], strict=True):
        members = np.argwhere(kept_views == label)
        best = np.argsort(-score[kept_views == label], kind="stable")[:views_per_cluster]
        found.append(Exemplars(int(label), int(size), tuple((int(i), int(v)) for i, v in members[best])))
    return found


def crop(image: UInt8[np.ndarray, "T T 3"], box: Float[np.ndarray, " 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """The part of an image inside a box (top, left, height, width) in fractions of its side."""
    side = len(image)
    top, left = (round(float(start) * side) for start in box[:2])
    height, width = (max(1, round(float(length) * side)) for length in box[2:])
    return np.asarray(image[top : top + height, left : left + width])


def draw_exemplars(
    found: Sequence[Exemplars],
    images: UInt8[np.ndarray, "N T T 3"],
    boxes: Float[np.ndarray, "V 4"],
    folder: Path,
    *,
    columns: int,
) -> None:
    """Draw one strip of views for each pseudo-label, room for `columns` views."""
    for row in found:
        tiles = [crop(images[image], boxes[view]) for image, view in row.views]
        save(strip(tiles, tile_px=VIEW_PX, columns=columns), folder / row.file)
