"""Sizes of clusters, and how far they follow single images, without ground truth."""

import numpy as np
from jaxtyping import Int, Integer
from scipy.special import entr


def effective_clusters(assignment: Int[np.ndarray, " N"]) -> float:
    """exp(entropy) of the cluster sizes: K for equal sizes, 1 if one cluster has all items (ours)."""
    return effective_number(np.bincount(assignment))


def effective_number(counts: Int[np.ndarray, " K"]) -> float:
    """exp(entropy) of counts; 0 if all counts are 0."""
    return float(np.exp(_entropy(counts))) if counts.any() else 0.0


def clusters_by_image(maps: Integer[np.ndarray, "M H W"], num_clusters: int) -> Int[np.ndarray, "M K"]:
    """Pixel count of each cluster in each image; ids >= K are ignored."""
    return np.stack([np.bincount(one[one < num_clusters], minlength=num_clusters) for one in maps])


def image_share(by_image: Int[np.ndarray, "M K"]) -> float:
    """Share of the cluster entropy that is explained by the image of a pixel: Theil's U (ours).

    0 means that every image has the same mixture of clusters, 1 that every image is a single cluster. The
    value of the ground truth lies in between and depends on the data set, so compare only runs on the same
    images. Clusters that follow whole images instead of their content have a much higher value than the
    truth. The value for a single cluster is defined as 0.

    Args:
        by_image: pixel count of each cluster in each image.
    """
    pixels = by_image.sum(0)
    if np.count_nonzero(pixels) < 2:
        return 0.0
    images = by_image.sum(1)
    shared = _entropy(pixels) + _entropy(images) - _entropy(by_image)  # mutual information
    return float(np.clip(shared / _entropy(pixels), 0, 1))


def _entropy(counts: Int[np.ndarray, "..."]) -> float:
    return float(entr(counts / counts.sum()).sum())  # scipy.stats has it too, and takes seconds to import
