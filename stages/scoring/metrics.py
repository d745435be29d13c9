"""Accuracy and IoU of matched clusters (5.1) under PiCIE's rules, and mIoU under other common rules."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import linear_sum_assignment

from stages.dataset.truth import UNMATCHED

Matcher = Callable[[Int64[np.ndarray, "num_classes num_clusters"]], Int64[np.ndarray, " num_clusters"]]


def match_by_overlap(
    confusion: Int64[np.ndarray, "num_classes num_clusters"],
) -> Int64[np.ndarray, " num_clusters"]:
    """One-to-one Hungarian matching that maximizes the number of matched pixels (PiCIE's rule).

    Returns:
        cluster_to_class: the class id of each cluster; `UNMATCHED` for clusters beyond the number of classes.
    """
    cluster_to_class = np.full(confusion.shape[1], UNMATCHED, np.int64)
    classes, clusters = linear_sum_assignment(confusion, maximize=True)
    cluster_to_class[clusters] = classes
    return cluster_to_class


def match_by_majority(
    confusion: Int64[np.ndarray, "num_classes num_clusters"],
) -> Int64[np.ndarray, " num_clusters"]:
    """Many-to-one matching: each cluster to the majority class of its pixels; ties go to the lower id.

    Returns:
        cluster_to_class: the class id of each cluster; `UNMATCHED` for clusters without labeled pixels.
    """
    if not len(confusion):
        return np.full(confusion.shape[1], UNMATCHED, np.int64)
    return np.where(confusion.any(0), confusion.argmax(0), UNMATCHED).astype(np.int64)


# How a class absent from the truth enters the mean IoU; PiCIE and the STEGO family use the first rule.
ABSENT_RULES = {
    "skip_unpredicted": "excluded if no pixel is assigned to it, else 0",
    "skip_absent": "always excluded",
    "zero": "always 0",
    "one": "1 if no pixel is assigned to it, else 0",
}


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1]; NaN where a fraction is 0 / 0.

    Attributes:
        accuracy: pixel accuracy, the share of labeled pixels that are matched.
        class_accuracy: mean of `recall` over the classes present in the truth.
        iou: IoU of each class. NaN only if the class is absent from the truth *and* its cluster is empty; 0
            if the class is absent from the truth but its cluster is not empty, or if it is present and has no
            cluster.
        recall: recall of each class; NaN if the class is absent from the truth.
    """

    accuracy: float
    class_accuracy: float
    iou: Float64[np.ndarray, " num_classes"]
    recall: Float64[np.ndarray, " num_classes"]

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes where it is defined."""
        return _mean(self.iou)

    @property
    def classes_counted(self) -> int:
        """Number of classes in the mean IoU."""
        return int(np.isfinite(self.iou).sum())

    def counted_iou(self, rule: str) -> Float64[np.ndarray, " num_counted"]:
        """The IoUs that enter the mean under one of `ABSENT_RULES`."""
        if rule == "skip_absent":
            return self.iou[np.isfinite(self.recall)]
        if rule == "skip_unpredicted":
            return self.iou[np.isfinite(self.iou)]
        return np.nan_to_num(self.iou, nan={"zero": 0.0, "one": 1.0}[rule])

    def miou_by(self, rule: str) -> float:
        """Mean IoU under one of `ABSENT_RULES`."""
        return _mean(self.counted_iou(rule))


def score(
    confusion: Int64[np.ndarray, "num_classes num_clusters"],
    cluster_to_class: Int64[np.ndarray, " num_clusters"],
    classes: Int64[np.ndarray, " num_scored"] | None = None,
) -> Scores:
    """Scores of a confusion matrix under a matching, which may map several clusters to one class.

    Args:
        confusion: pixel count of each [class, cluster].
        cluster_to_class: class id of each cluster; pixels of `UNMATCHED` clusters count as errors.
        classes: classes to score, all by default; pixels of other classes still count as false positives.
    """
    matched, claimed = by_class(confusion, cluster_to_class)
    present = confusion.sum(1)
    if classes is not None:
        matched, claimed, present = matched[classes], claimed[classes], present[classes]
    recall = _fraction(matched, present)
    return Scores(
        accuracy=float(_fraction(matched.sum(), present.sum())),
        class_accuracy=_mean(recall),
        iou=_fraction(matched, present + claimed - matched),
        recall=recall,
    )


def by_class(
    confusion: Int64[np.ndarray, "num_classes num_clusters"],
    cluster_to_class: Int64[np.ndarray, " num_clusters"],
) -> tuple[Int64[np.ndarray, " num_classes"], Int64[np.ndarray, " num_classes"]]:
    """For each class: its pixels in its clusters, and all labeled pixels there; 0 without a cluster."""
    matched = np.zeros(len(confusion), np.int64)
    claimed = np.zeros(len(confusion), np.int64)
    clusters = np.flatnonzero(cluster_to_class != UNMATCHED)
    classes = cluster_to_class[clusters]
    np.add.at(matched, classes, confusion[classes, clusters])
    np.add.at(claimed, classes, confusion[:, clusters].sum(0))
    return matched, claimed


def _fraction(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; 0 / 0 is NaN, without a warning."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    fraction: np.ndarray = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return fraction


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
