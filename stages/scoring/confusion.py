"""Confusion matrices: pixel counts by class and cluster (5.1), the input of accuracy and IoU."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from stages.clustering.usage import clusters_by_image, effective_number, image_share
from stages.dataset.truth import IGNORED
from stages.settings.errors import UserError


def shares(pixels: Int64[np.ndarray, " num_clusters"]) -> Float64[np.ndarray, " num_clusters"]:
    """The share of all pixels in each cluster."""
    return pixels / max(int(pixels.sum()), 1)


def partition_stats(
    pixels: Int64[np.ndarray, " num_clusters"], image_share: float | None
) -> dict[str, float]:
    """Figures of a partition that need no truth.

    Args:
        pixels: pixel count of each cluster.
        image_share: how closely clusters follow whole images, in [0, 1]; None if unknown.

    Returns:
        clusters_used: clusters with at least one pixel.
        effective_clusters: exp of the entropy of the shares; K for equal shares, 1 for a single cluster.
        largest_cluster_share: in [0, 1]; close to 1 if the partition has collapsed.
        image_share: as given; omitted if None.
    """
    used = shares(pixels)[pixels > 0]
    return {
        "clusters_used": len(used),
        "effective_clusters": effective_number(pixels),
        "largest_cluster_share": float(used.max(initial=0.0)),
        **({} if image_share is None else {"image_share": image_share}),
    }


@dataclass(frozen=True)
class Tally:
    """Counts over a split.

    Attributes:
        confusion: pixel count of each [class, cluster], labeled pixels only; no rows without truth.
        pixels: pixel count of each cluster, including unlabeled pixels.
        image_share: how closely clusters follow whole images (`usage.image_share`); None if unknown.
    """

    confusion: Int64[np.ndarray, "num_classes num_clusters"]
    pixels: Int64[np.ndarray, " num_clusters"]
    image_share: float | None = None


@dataclass(frozen=True)
class Counted:
    """The inputs of all scores.

    Attributes:
        confusion: pixel count of each [class, cluster].
        matched_on: counts used for the matching; for CRF results too, those of the raw prediction.
        class_names: names of class ids 0, 1, ...
        class_kinds: thing, stuff or nothing, for the same ids.
    """

    confusion: Int64[np.ndarray, "C K"]
    matched_on: Int64[np.ndarray, "C K"]
    class_names: tuple[str, ...]
    class_kinds: tuple[str, ...]


def confusion_matrix(
    truth: UInt8[np.ndarray, "..."],
    clusters: UInt8[np.ndarray, "..."],
    *,
    num_classes: int,
    num_clusters: int,
) -> Int64[np.ndarray, "num_classes num_clusters"]:
    """Confusion matrix; rows are truth, and pixels with truth 255 are ignored.

    Raises:
        UserError: a class id or a cluster id is out of range.
    """
    labelled = truth != IGNORED
    rows, columns = truth[labelled].astype(np.int64), clusters[labelled].astype(np.int64)
    if rows.size and rows.max() >= num_classes:
        raise UserError(
            f"truth: val.npy has class id {rows.max()}, but classes.csv lists {num_classes} classes; "
            "run `dvc repro prepare`"
        )
    _check_clusters(clusters, num_clusters)
    counts = np.bincount(num_clusters * rows + columns, minlength=num_classes * num_clusters)
    return counts.astype(np.int64).reshape(num_classes, num_clusters)


def tally(
    maps: Iterable[tuple[slice, np.ndarray]], truth: np.ndarray, *, num_classes: int, num_clusters: int
) -> Tally:
    """Count the pixels of a split that is given in chunks.

    Args:
        maps: (images, their cluster ids uint8 [B, S, S]).
        truth: class ids uint8 [M, S, S] of the whole split, a memory map.
        num_classes: 0 without truth.
        num_clusters: K.
    """
    confusion = np.zeros((num_classes, num_clusters), np.int64)
    by_image = [np.zeros((0, num_clusters), np.int64)]
    for images, clusters in maps:
        _check_clusters(clusters, num_clusters)
        by_image.append(clusters_by_image(clusters, num_clusters))
        if num_classes:
            confusion += confusion_matrix(
                truth[images], clusters, num_classes=num_classes, num_clusters=num_clusters
            )
    counts = np.concatenate(by_image)
    return Tally(confusion, counts.sum(0), image_share(counts))


def truth_figures(truth: UInt8[np.ndarray, "M S S"], num_classes: int) -> dict[str, float]:
    """Figures of the classes themselves, for comparison with those of clusters.

    Args:
        truth: class ids, a memory map; 255 is ignored.
        num_classes: 0 without truth.

    Returns:
        `effective_clusters` and `image_share`; nothing if fewer than two classes have a pixel, because one
        class tells nothing of either.
    """
    by_image = clusters_by_image(truth, num_classes)
    pixels = by_image.sum(0)
    if np.count_nonzero(pixels) < 2:
        return {}
    return {"effective_clusters": effective_number(pixels), "image_share": image_share(by_image)}


def _check_clusters(clusters: np.ndarray, num_clusters: int) -> None:
    if clusters.size and clusters.max() >= num_clusters:
        raise UserError(
            f"refined: has cluster id {clusters.max()}, but the predictions have {num_clusters} clusters; "
            "run `dvc repro refine`"
        )
