"""How the pixels are spread over the clusters, before and after the CRF."""

import numpy as np
from jaxtyping import Float, Float16, UInt8

from stages.imaging.score_maps import chunks, cluster_maps


def score_shares(scores: Float16[np.ndarray, "M K h w"]) -> Float[np.ndarray, " K"]:
    """The share of each cluster in the predictions, counted at feature resolution."""
    height, num_clusters = scores.shape[2], scores.shape[1]
    counts = np.zeros(num_clusters, np.int64)
    for images in chunks(scores, height):
        counts += np.bincount(cluster_maps(scores[images], height).ravel(), minlength=num_clusters)
    return counts / max(int(counts.sum()), 1)


def label_shares(labels: UInt8[np.ndarray, "M S S"], num_clusters: int) -> Float[np.ndarray, " K"]:
    """The share of each cluster in label maps, one image in memory at a time.

    Raises:
        ValueError: a label is no cluster id.
    """
    counts = np.zeros(256, np.int64)
    for image in labels:
        counts += np.bincount(image.ravel(), minlength=256)
    if counts[num_clusters:].any():
        raise ValueError(f"label {int(np.flatnonzero(counts).max())} is no id of {num_clusters} clusters")
    return counts[:num_clusters] / max(int(counts.sum()), 1)
