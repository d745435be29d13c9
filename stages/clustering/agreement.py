"""How far two clusterings of the same items agree; needs no truth."""

import numpy as np
from jaxtyping import Int
from sklearn.metrics import adjusted_mutual_info_score


def agreement(first: Int[np.ndarray, " N"], second: Int[np.ndarray, " N"]) -> float:
    """Adjusted mutual information (Vinh et al., 2010): 1 is the same partition, 0 is chance."""
    return float(adjusted_mutual_info_score(first, second))


def effective_clusters(assignment: Int[np.ndarray, " N"]) -> float:
    """exp(entropy) of the cluster sizes: K when all are equal, 1 when one has everything (ours)."""
    return effective_number(np.bincount(assignment))


def effective_number(counts: Int[np.ndarray, " K"]) -> float:
    """exp(entropy) of counts; 0 where there is nothing to count."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0
