"""Which new clusters go on as clusters of an earlier run, and what numbers they take (ours)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stages.core.device import place
from stages.final_clusters.sampling import cluster_maps
from stages.imaging.batches import ImageSource
from stages.runtime.progress import say
from stages.segmenter.network import Segmenter
from stages.segmenter.segmenter_file import Earlier
from stages.settings.schema import Params

CONTINUED_IMAGES = 256  # both clusterings are compared on
# A new cluster goes on as an old one from this IoU on. Clusters of equal size then share half of their
# pixels, so most of what the name was given for is still there.
LEAST_IOU = 1 / 3


@dataclass(frozen=True)
class Continuation:
    """How new clusters follow old ones.

    Attributes:
        number: number that each new cluster takes, a permutation of 0 .. K - 1.
        kept: old number, in use again, of each cluster that goes on; with their IoU.
        moved: old number and new one of clusters that go on, but whose old number is K or more.
        new: numbers, in use now, that mean something else than before, or did not exist.
        gone: old numbers that no new cluster continues.
    """

    number: Int64[np.ndarray, " K"]
    kept: dict[int, float]
    moved: dict[int, int]
    new: tuple[int, ...]
    gone: tuple[int, ...]


def keep_numbers(
    earlier: Earlier,
    segmenter: Segmenter,
    centroids: Float[Tensor, "K D"],
    images: ImageSource,
    params: Params,
) -> tuple[Float[Tensor, "K D"], dict[str, Any], dict[str, Any]]:
    """Number the clusters so that those that go on from an earlier run keep their numbers (ours).

    Both networks assign the pixels of the same training images.

    Returns:
        The centroids in the new order; metadata for their file; figures on what goes on, is new, or is gone.
    """
    before, now = (
        cluster_maps(network, found, images, count=CONTINUED_IMAGES, size_px=size_px, params=params)
        for network, found, size_px in (
            (place(earlier.segmenter, images.device), earlier.centroids, earlier.size_px),
            (segmenter, centroids, params.size_px),
        )
    )
    shared = count_shared(before, now, len(earlier.centroids), len(centroids))
    found = continue_clusters(shared)
    say("cluster", continued=len(found.kept), new=list(found.new), gone=list(found.gone), moved=found.moved)
    ordered = torch.empty_like(centroids)
    ordered[torch.from_numpy(found.number)] = centroids
    figures = {
        "continued": [{"cluster": cluster, "iou": iou} for cluster, iou in found.kept.items()],
        "new": list(found.new),
        "gone": list(found.gone),
        "moved": [{"from": old, "to": new} for old, new in found.moved.items()],
    }
    return ordered, earlier.about_continuing(found.new), figures


def count_shared(
    old: Int64[np.ndarray, "N h w"], new: Int64[np.ndarray, "N H W"], num_old: int, num_new: int
) -> Int64[np.ndarray, "J K"]:
    """Number of pixels of each pair of clusters; old maps are brought to the size of the new ones."""
    rows, columns = (
        (np.arange(side) * before // side) for side, before in zip(new.shape[1:], old.shape[1:], strict=True)
    )
    pairs = old[:, rows][:, :, columns] * num_new + new
    return np.bincount(pairs.ravel(), minlength=num_old * num_new).reshape(num_old, num_new)


def overlaps(shared: Int64[np.ndarray, "J K"]) -> Float64[np.ndarray, "J K"]:
    """IoU of old clusters J and new clusters K, from the pixels that they share; 0 if both are empty."""
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    return shared / np.maximum(union, 1)


def match_clusters(shared: Int64[np.ndarray, "J K"], least_iou: float = LEAST_IOU) -> dict[int, int]:
    """Old cluster of each new one that continues it: one to one, with the largest sum of IoU.

    Pairs below `least_iou` count as nothing, so that no strong pair gives way to several weak ones.
    """
    iou = overlaps(shared)
    old, new = linear_sum_assignment(np.where(iou >= least_iou, iou, 0), maximize=True)
    return {int(k): int(j) for j, k in zip(old, new, strict=True) if iou[j, k] >= least_iou}


def continue_clusters(shared: Int64[np.ndarray, "J K"]) -> Continuation:
    """Give each new cluster a number: that of the old cluster that it continues, or a free one.

    Free numbers are taken from J on first, because those below are of clusters that are gone.

    Args:
        shared: pixels that have old cluster j and new cluster k.
    """
    num_old, num_new = shared.shape
    continues, iou = match_clusters(shared), overlaps(shared)
    number = np.full(num_new, -1, np.int64)
    for k, j in continues.items():
        number[k] = j if j < num_new else -1
    taken = set(number.tolist())
    unused = (one for one in (*range(num_old, num_new), *range(num_old)) if one < num_new)
    free = iter([one for one in unused if one not in taken])
    without = [k for k in range(num_new) if number[k] < 0]
    for k in without:
        number[k] = next(free)
    return Continuation(
        number,
        {j: float(iou[j, k]) for k, j in sorted(continues.items(), key=lambda pair: pair[1]) if j < num_new},
        {j: int(number[k]) for k, j in continues.items() if j >= num_new},
        tuple(sorted(int(number[k]) for k in without)),
        tuple(j for j in range(num_old) if j not in continues.values()),
    )
