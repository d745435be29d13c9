"""What can be said of a partition without any truth: how many clusters it really uses, and how evenly."""

import numpy as np
from jaxtyping import Float64, Int64

from stages.clustering.agreement import effective_number


def shares(pixels: Int64[np.ndarray, " num_clusters"]) -> Float64[np.ndarray, " num_clusters"]:
    """The share of all pixels in each cluster."""
    return pixels / max(int(pixels.sum()), 1)


def partition_stats(
    pixels: Int64[np.ndarray, " num_clusters"], image_share: float | None
) -> dict[str, float]:
    """Figures that need no truth.

    Args:
        pixels: of each cluster.
        image_share: how far clusters follow whole images, in [0, 1]; None where images are not known.

    Returns:
        clusters_used: clusters with at least one pixel.
        effective_clusters: exp of the entropy of the shares; K when all are equal, 1 when one has everything.
        largest_cluster_share: in [0, 1]; near 1 the partition has collapsed.
        image_share: as given, where it is.
    """
    used = shares(pixels)[pixels > 0]
    return {
        "clusters_used": len(used),
        "effective_clusters": effective_number(pixels),
        "largest_cluster_share": float(used.max(initial=0.0)),
        **({} if image_share is None else {"image_share": image_share}),
    }
