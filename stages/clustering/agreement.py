"""How far two clusterings of the same items agree; needs no truth."""

import numpy as np
from jaxtyping import Int
from sklearn.metrics import adjusted_mutual_info_score


def agreement(first: Int[np.ndarray, " N"], second: Int[np.ndarray, " N"]) -> float:
    """Adjusted mutual information: 1 is the same partition under any names, 0 is chance (Vinh et al., 2010)."""
    return float(adjusted_mutual_info_score(first, second))


def effective_clusters(assignment: Int[np.ndarray, " N"]) -> float:
    """exp(entropy) of the cluster sizes: K when all are equal, 1 when one has everything (ours)."""
    shares = np.bincount(assignment) / len(assignment)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
