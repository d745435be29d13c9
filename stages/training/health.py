"""Signs of health that need no truth: how clusters are used and move, whether the views agree (ours)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stages.clustering.agreement import clusters_by_image, effective_number, image_share
from stages.core import distributed
from stages.runtime.progress import say

CURES = (
    "lower train.lr, pretrain longer, raise train.image_loss.weight where pseudo-labels are stable "
    "(metrics/label.json), or set train.pixel_loss.balance: inverse"
)
SIGNS = ("effective_clusters", "largest_cluster", "image_share", "moved_share", "view_agreement")


class Health:
    """What one epoch shows of its clusters.

    Args:
        num_clusters: K, in each view.
        collapse_below: used share of clusters under which training is called collapsed.
        device: of the pixels that are counted.
    """

    def __init__(self, num_clusters: int, *, collapse_below: float, device: torch.device) -> None:
        self._num_clusters, self._collapse_below = num_clusters, collapse_below
        self._counts = torch.zeros(2, num_clusters, dtype=torch.long)
        self._probe = torch.empty(0, 0, 0, dtype=torch.long)
        self._moved_share = float("nan")
        self._pairs = torch.zeros(num_clusters**2, dtype=torch.long, device=device)

    def start_epoch(self, counts: Sequence[Int[Tensor, " K"]], probe: Int[Tensor, "N H W"]) -> None:
        """Take in the new clusters.

        Args:
            counts: pixels of each cluster in both views.
            probe: clusters of the same images in every epoch.
        """
        self._counts = torch.stack(list(counts))
        last, self._probe = self._probe, probe
        if len(last):
            self._moved_share = 1 - matched_share(self._table(self._pair(last, probe)))
        self._pairs.zero_()

    def add(self, first: Int[Tensor, "N H W"], second: Int[Tensor, "N H W"]) -> None:
        """Take in the clusters of the same pixels in both views."""
        self._pairs += distributed.total(self._pair(first, second))

    def figures(self) -> dict[str, float]:
        """Of the epoch; `moved_share` is NaN in the first, which has nothing to compare with."""
        counts = self._counts.numpy()
        return {
            "effective_clusters": self._effective_clusters(),
            "largest_cluster": max(float(view.max() / view.sum()) for view in counts),
            "image_share": image_share(clusters_by_image(self._probe.numpy(), self._num_clusters)),
            "moved_share": self._moved_share,
            "view_agreement": matched_share(self._table(self._pairs)),
        }

    def is_collapsed(self) -> bool:
        """Whether a few clusters have nearly all pixels, in either view."""
        return used_share(self._effective_clusters(), self._num_clusters) < self._collapse_below

    def warn(self) -> None:
        """Say so when the clusters have collapsed, and what helps."""
        if self.is_collapsed():
            used = f"effectively {self._effective_clusters():.1f} of {self._num_clusters} clusters are in use"
            say("train", collapsed=f"{used}; {CURES}")

    def cluster_shares(self) -> list[float]:
        """Share of pixels of each cluster of the first view, largest first."""
        shares = self._counts[0] / self._counts[0].sum()
        return sorted(shares.tolist(), reverse=True)

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on."""
        return {
            "counts": self._counts,
            "probe": self._probe,
            "moved_share": self._moved_share,
            "pairs": self._pairs,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what was saved."""
        self._counts, self._probe = saved["counts"], saved["probe"]
        self._moved_share, self._pairs = saved["moved_share"], saved["pairs"].to(self._pairs.device)

    def _effective_clusters(self) -> float:
        """Of the view in which they are fewer."""
        return min(effective_number(view) for view in self._counts.numpy())

    def _pair(self, first: Int[Tensor, "*P"], second: Int[Tensor, "*P"]) -> Int[Tensor, " KK"]:
        if first.device.type == "cpu":
            both = (first * self._num_clusters + second).flatten()
            return torch.bincount(both, minlength=self._num_clusters**2)
        # `bincount` would wait for the device; this product is exact, for counts are below 2^24.
        clusters = torch.arange(self._num_clusters, device=first.device)
        first_is, second_is = ((one.flatten()[:, None] == clusters).float() for one in (first, second))
        return (first_is.T @ second_is).flatten().long()

    def _table(self, pairs: Int[Tensor, " KK"]) -> Int[np.ndarray, "K K"]:
        return pairs.view(self._num_clusters, self._num_clusters).cpu().numpy()


def matched_share(pairs: Int[np.ndarray, "K K"]) -> float:
    """Share of pixels on which two clusterings agree once their clusters are matched one to one.

    The names of clusters mean nothing, so the matching that agrees on the most pixels counts.

    Args:
        pairs: pixels in cluster i of the first and cluster j of the second clustering.
    """
    total = int(pairs.sum())
    return float(pairs[linear_sum_assignment(pairs, maximize=True)].sum()) / total if total else 0.0


def used_share(effective_clusters: float, num_clusters: int) -> float:
    """0 where one cluster has every pixel, 1 where all K are equally large."""
    return (effective_clusters - 1) / (num_clusters - 1)
