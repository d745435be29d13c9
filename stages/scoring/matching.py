"""Which cluster stands for which class (5.1): found with the truth, for the score alone."""

import numpy as np
from jaxtyping import Int64
from scipy.optimize import linear_sum_assignment

UNMATCHED = -1


def match_by_overlap(
    confusion: Int64[np.ndarray, "num_classes num_clusters"],
) -> Int64[np.ndarray, " num_clusters"]:
    """Hungarian matching that maximises the matched pixels, one cluster to one class (PiCIE's rule).

    Returns:
        cluster_to_class: the class id of each cluster; `UNMATCHED` for clusters beyond the number of classes.
    """
    classes, clusters = linear_sum_assignment(confusion, maximize=True)
    cluster_to_class = np.full(confusion.shape[1], UNMATCHED, np.int64)
    cluster_to_class[clusters] = classes
    return cluster_to_class
