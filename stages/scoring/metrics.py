"""Accuracy and IoU of matched clusters (5.1), by PiCIE's rules."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from stages.scoring.matching import UNMATCHED


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1]; NaN where a fraction is 0 of 0.

    Attributes:
        accuracy: matched pixels of all labelled pixels.
        miou: mean of `iou` over the classes that have one.
        class_accuracy: mean of `recall` over the classes that have one.
        iou: of each class. NaN only where the class is not in the truth *and* its cluster is empty; a class
            that is not in the truth while its cluster is in use has 0, and so has a class without a cluster.
        recall: of each class; NaN where the class is not in the truth.
    """

    accuracy: float
    miou: float
    class_accuracy: float
    iou: Float64[np.ndarray, " num_classes"]
    recall: Float64[np.ndarray, " num_classes"]

    @property
    def classes_counted(self) -> int:
        """How many classes the mean IoU is a mean of."""
        return int(np.isfinite(self.iou).sum())


def score(
    confusion: Int64[np.ndarray, "num_classes num_clusters"],
    cluster_to_class: Int64[np.ndarray, " num_clusters"],
) -> Scores:
    """Scores of a confusion matrix under a matching."""
    matched, claimed = by_class(confusion, cluster_to_class)
    present = confusion.sum(1)
    iou = _fraction(matched, present + claimed - matched)
    recall = _fraction(matched, present)
    return Scores(
        accuracy=float(_fraction(matched.sum(), present.sum())),
        miou=_mean(iou),
        class_accuracy=_mean(recall),
        iou=iou,
        recall=recall,
    )


def by_class(
    confusion: Int64[np.ndarray, "num_classes num_clusters"],
    cluster_to_class: Int64[np.ndarray, " num_clusters"],
) -> tuple[Int64[np.ndarray, " num_classes"], Int64[np.ndarray, " num_classes"]]:
    """For each class: its pixels in its own cluster, and all labelled pixels there; 0 without a cluster."""
    matched = np.zeros(len(confusion), np.int64)
    claimed = np.zeros(len(confusion), np.int64)
    clusters = np.flatnonzero(cluster_to_class != UNMATCHED)
    classes = cluster_to_class[clusters]
    matched[classes] = confusion[classes, clusters]
    claimed[classes] = confusion[:, clusters].sum(0)
    return matched, claimed


def _fraction(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; 0 of 0 is NaN, without a warning."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    fraction: np.ndarray = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return fraction


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
