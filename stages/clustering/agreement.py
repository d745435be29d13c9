"""How far two clusterings of the same items agree, and how clusters are used; needs no truth."""

import numpy as np
from jaxtyping import Int, Integer
from scipy.stats import entropy
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score


def agreement(first: Int[np.ndarray, " N"], second: Int[np.ndarray, " N"]) -> float:
    """Adjusted mutual information (Vinh et al., 2010): 1 is the same partition, 0 is chance."""
    return float(adjusted_mutual_info_score(first, second))


def effective_clusters(assignment: Int[np.ndarray, " N"]) -> float:
    """exp(entropy) of the cluster sizes: K when all are equal, 1 when one has everything (ours)."""
    return effective_number(np.bincount(assignment))


def effective_number(counts: Int[np.ndarray, " K"]) -> float:
    """exp(entropy) of counts; 0 where there is nothing to count."""
    return float(np.exp(entropy(counts))) if counts.any() else 0.0


def clusters_by_image(maps: Integer[np.ndarray, "M H W"], num_clusters: int) -> Int[np.ndarray, "M K"]:
    """Pixels of each cluster in each image; ids from K on are left out."""
    return np.stack([np.bincount(one[one < num_clusters], minlength=num_clusters) for one in maps])


def image_share(by_image: Int[np.ndarray, "M K"]) -> float:
    """How much of what the cluster of a pixel says is told by its image alone: Theil's U (ours).

    0: every image has the same mixture of clusters; 1: every image is one cluster. The truth lies between,
    lower where images are of one kind, so this compares trainings on the same images. Clusters that follow
    images and not what is in them have far more of it than their truth. One cluster says nothing: 0.

    Args:
        by_image: pixels of each cluster in each image.
    """
    pixels = by_image.sum(0)
    if np.count_nonzero(pixels) < 2:
        return 0.0
    return float(np.clip(mutual_info_score(None, None, contingency=by_image) / entropy(pixels), 0, 1))
