"""The purest regions of each cluster, for its gallery (ours)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from stages.postprocessing.score_maps import chunks, cluster_maps
from stages.reporting.pictures import Pictures, crop

REGION_SIDE = 0.5  # of a region, relative to the image: large enough to see what surrounds a small thing
OUTSIDE_SHARE = 0.25  # what remains of a pixel that is not of the cluster
OUTSIDE_GREY = 128


@dataclass(frozen=True)
class Region:
    """A square in a validation image.

    Attributes:
        image: index of the image in its split.
        top, left: corner, in fractions of the side of the image.
        share: share of its pixels that are of the cluster.
    """

    image: int
    top: float
    left: float
    share: float


def grouped_scores(scores: np.ndarray, merged: UInt8[np.ndarray, " K"]) -> Float[np.ndarray, "B G h w"]:
    """Scores of merged clusters: the highest of their members, in the order of `np.unique(merged)`."""
    values = np.asarray(scores, np.float32)
    return np.stack([values[:, merged == stands].max(1) for stands in np.unique(merged)], axis=1)


def margins(grouped: Float[np.ndarray, "B G h w"]) -> Float[np.ndarray, "B h w"]:
    """How sure the choice of a pixel is: its best score minus the second; 0 if there is one group only."""
    if grouped.shape[1] == 1:
        return np.zeros_like(grouped[:, 0])
    top = np.partition(grouped, -2, axis=1)
    margin: np.ndarray = top[:, -1] - top[:, -2]
    return margin


def purest_regions(
    scores: np.ndarray, merged: UInt8[np.ndarray, " K"], per_cluster: int
) -> dict[int, list[Region]]:
    """Find the best region of each cluster in each image, and keep those of the best images.

    Best: the share of pixels of the cluster, times their margin averaged over the region.

    Args:
        scores: float16 [M, K, h, w], a memory map, which is read once.
        merged: the cluster that stands for each cluster.
        per_cluster: most regions of a cluster; each is of another image.
    """
    num_images, height = len(scores), scores.shape[2]
    groups = np.unique(merged)
    side = max(1, round(REGION_SIDE * height))
    shape = (len(groups), num_images)
    value, share, place = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    for images in chunks(scores, height):
        grouped = grouped_scores(scores[images], merged)
        labels, margin = grouped.argmax(1), margins(grouped)
        for row in range(len(groups)):
            inside = labels == row
            shares = window_means(inside, side)
            found = shares * window_means(inside * margin, side)
            flat = found.reshape(len(found), -1)
            best = flat.argmax(1)[:, None]
            place[row, images] = best[:, 0]
            value[row, images] = np.take_along_axis(flat, best, 1)[:, 0]
            share[row, images] = np.take_along_axis(shares.reshape(len(found), -1), best, 1)[:, 0]
    columns = scores.shape[3] - side + 1
    regions: dict[int, list[Region]] = {}
    for row, stands in enumerate(groups.tolist()):
        order = np.lexsort((-share[row], -value[row]))  # by value, then share; ties go to the earlier image
        best_images = [int(image) for image in order if share[row, image] > 0][:per_cluster]
        regions[stands] = [
            Region(
                image,
                float(place[row, image] // columns / height),
                float(place[row, image] % columns / scores.shape[3]),
                float(share[row, image]),
            )
            for image in best_images
        ]
    return regions


def window_means(
    values: Float[np.ndarray, "B h w"] | Bool[np.ndarray, "B h w"], side: int
) -> Float[np.ndarray, "B y x"]:
    """Mean over each square window, by a table of sums; y = h - side + 1."""
    sums = np.pad(values.astype(np.float64), ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    total = sums[:, side:, side:] - sums[:, :-side, side:] - sums[:, side:, :-side] + sums[:, :-side, :-side]
    return np.asarray(total / side**2)


def draw_regions(
    regions: Sequence[Region],
    cluster: int,
    merged: UInt8[np.ndarray, " K"],
    scores: np.ndarray,
    images: UInt8[np.ndarray, "M S S 3"],
    pictures: Pictures,
) -> list[str]:
    """Store the regions of one cluster, pixels of others faded; returns their `src`."""
    sources = []
    for number, region in enumerate(regions):
        box = np.array([region.top, region.left, REGION_SIDE, REGION_SIDE])
        photo = crop(np.asarray(images[region.image]), box)
        labels = cluster_maps(scores[region.image : region.image + 1], images.shape[1])[0]
        outside = crop(merged[labels], box) != cluster
        faded = OUTSIDE_SHARE * photo.mean(-1, keepdims=True) + (1 - OUTSIDE_SHARE) * OUTSIDE_GREY
        shown = np.where(outside[..., None], faded, photo).round().astype(np.uint8)
        sources.append(pictures.photo(f"region_{cluster:03d}_{number}", shown))
    return sources
