"""Label-free diagnostics: cluster usage, cluster stability, and agreement of the views (ours)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stages.clustering.usage import clusters_by_image, effective_number, image_share
from stages.core import distributed
from stages.runtime.progress import warn

CURES = "lower train.lr, pretrain longer, or set train.pixel_loss.balance: inverse, unless it is set"
SIGNS = ("effective_clusters", "largest_cluster", "image_share", "moved_share", "view_agreement")


class Health:
    """Cluster diagnostics of one epoch.

    Args:
        num_clusters: number of clusters K per view.
        collapse_below: used share of clusters below which training counts as collapsed.
        device: device of the pixel counts.
    """

    def __init__(self, num_clusters: int, *, collapse_below: float, device: torch.device) -> None:
        self._num_clusters, self._collapse_below = num_clusters, collapse_below
        self._counts = torch.zeros(2, num_clusters, dtype=torch.long)
        self._probe = torch.empty(0, 0, 0, dtype=torch.long)
        self._moved_share = float("nan")
        self._pairs = torch.zeros(num_clusters**2, dtype=torch.long, device=device)

    def start_epoch(self, counts: Sequence[Int[Tensor, " K"]], probe: Int[Tensor, "N H W"]) -> None:
        """Record the new clusters.

        Args:
            counts: pixel count of each cluster, for both views.
            probe: cluster ids of probe images, which are the same in every epoch.
        """
        self._counts = torch.stack(list(counts))
        last, self._probe = self._probe, probe
        if len(last):
            self._moved_share = 1 - matched_share(self._table(self._pair(last, probe)))
        self._pairs.zero_()

    def add(self, first: Int[Tensor, "N H W"], second: Int[Tensor, "N H W"]) -> None:
        """Record the cluster ids of the same pixels in both views."""
        self._pairs += distributed.total(self._pair(first, second))

    def figures(self) -> dict[str, float]:
        """Figures of the epoch; `moved_share` is NaN in the first epoch."""
        counts = self._counts.numpy()
        return {
            "effective_clusters": self._effective_clusters(),
            "largest_cluster": max(float(view.max() / view.sum()) for view in counts),
            "image_share": image_share(clusters_by_image(self._probe.numpy(), self._num_clusters)),
            "moved_share": self._moved_share,
            "view_agreement": matched_share(self._table(self._pairs)),
        }

    def is_collapsed(self) -> bool:
        """Whether few clusters contain nearly all pixels, in either view."""
        return used_share(self._effective_clusters(), self._num_clusters) < self._collapse_below

    def warn(self) -> None:
        """Log a warning with remedies if the clusters have collapsed."""
        if self.is_collapsed():
            used = f"effectively {self._effective_clusters():.1f} of {self._num_clusters} clusters are in use"
            warn("train", f"the clusters have collapsed: {used}; {CURES}")

    def cluster_shares(self) -> list[float]:
        """Pixel share of each cluster of the first view, in descending order."""
        shares = self._counts[0] / self._counts[0].sum()
        return sorted(shares.tolist(), reverse=True)

    def state_dict(self) -> dict[str, Any]:
        """State needed to resume."""
        return {
            "counts": self._counts,
            "probe": self._probe,
            "moved_share": self._moved_share,
            "pairs": self._pairs,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self._counts, self._probe = saved["counts"], saved["probe"]
        self._moved_share = saved["moved_share"]
        self._pairs.copy_(saved["pairs"])  # in place: a captured step counts there

    def _effective_clusters(self) -> float:
        """Effective number of clusters, minimum over the views."""
        return min(effective_number(view) for view in self._counts.numpy())

    def _pair(self, first: Int[Tensor, "*P"], second: Int[Tensor, "*P"]) -> Int[Tensor, " KK"]:
        if first.device.type == "cpu":
            both = (first * self._num_clusters + second).flatten()
            return torch.bincount(both, minlength=self._num_clusters**2)
        # `bincount` would synchronize with the GPU; this product is exact because counts are below 2^24.
        clusters = torch.arange(self._num_clusters, device=first.device)
        first_is, second_is = ((one.flatten()[:, None] == clusters).float() for one in (first, second))
        return (first_is.T @ second_is).flatten().long()

    def _table(self, pairs: Int[Tensor, " KK"]) -> Int[np.ndarray, "K K"]:
        return pairs.view(self._num_clusters, self._num_clusters).cpu().numpy()


def matched_share(pairs: Int[np.ndarray, "K K"]) -> float:
    """Share of pixels on which two clusterings agree after one-to-one matching of their clusters.

    Cluster ids are arbitrary, so the matching with the highest agreement is used.

    Args:
        pairs: pixel count for cluster i of the first and cluster j of the second clustering.
    """
    total = int(pairs.sum())
    return float(pairs[linear_sum_assignment(pairs, maximize=True)].sum()) / total if total else 0.0


def used_share(effective_clusters: float, num_clusters: int) -> float:
    """Normalize to [0, 1]: 0 if one cluster has all pixels, 1 if all K clusters have equal size."""
    return (effective_clusters - 1) / (num_clusters - 1)
