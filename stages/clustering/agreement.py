"""Agreement of two clusterings, without ground truth."""

import numpy as np
from jaxtyping import Int
from sklearn.metrics import adjusted_mutual_info_score


def agreement(first: Int[np.ndarray, " N"], second: Int[np.ndarray, " N"]) -> float:
    """Adjusted mutual information (Vinh et al., 2010): 1 for identical partitions, 0 for chance."""
    return float(adjusted_mutual_info_score(first, second))
