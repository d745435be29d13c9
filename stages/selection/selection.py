"""Active selection (4.2.1): only views that are near their cluster's centre guide the training."""

import numpy as np
from jaxtyping import Bool, Float, Int


def select(
    score: Float[np.ndarray, "N V"],
    pseudo_label: Int[np.ndarray, "N V"],
    *,
    ratio: float,
    pool: str,
    scope: str,
) -> Bool[np.ndarray, "N V"]:
    """Which views are kept: the `ratio` with the highest scores, True is kept.

    Args:
        score: cosine of each view to its own centre.
        pseudo_label: its cluster.
        ratio: share of the pool that is kept, in (0, 1]; the number is rounded half up.
        pool: `pyramid` ranks all views; `whole` only the first, the whole image; `parts` all others, and
            keeps every whole image.
        scope: rank `global`ly, or the same share `per_cluster`, or `per_view` position.

    Ties go to the earlier image, then the earlier view.
    """
    kept = np.zeros(score.shape, dtype=bool)
    kept[:, 0] = pool == "parts"
    in_pool = np.empty(score.shape, dtype=bool)
    in_pool[:, 0], in_pool[:, 1:] = pool != "parts", pool != "whole"
    groups = {
        "global": np.zeros(score.shape, dtype=np.int64),
        "per_cluster": pseudo_label,
        "per_view": np.broadcast_to(np.arange(score.shape[1]), score.shape),
    }[scope]
    for group in np.unique(groups[in_pool]):
        members = np.flatnonzero(in_pool & (groups == group))
        best = np.argsort(-score.flat[members], kind="stable")[: int(ratio * len(members) + 0.5)]
        kept.flat[members[best]] = True
    return kept
