"""The losses of pixel-cluster training (3, 4.1, 4.2.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stages.core import distributed
from stages.segmenter.pixels import Pixels, pixel_logits
from stages.settings.schema_train import Metric


class ViewClusters(NamedTuple):
    """The clusters of one view, fixed for an epoch."""

    centroids: Float[Tensor, "K D"]
    weight: Float[Tensor, " K"]


def pixel_loss(
    logits: Float[Tensor, "N H W K"],
    target: Int[Tensor, "N H W"],
    weight: Float[Tensor, " K"],
    temperature: float,
    share: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of pixels against fixed centroids: -log softmax(cos(z, mu) / temperature)[y] (Eq. 4).

    Args:
        logits: cos(z, mu) or another similarity (`pixel_logits`).
        target: cluster id of every pixel.
        weight: loss weight of each cluster.
        temperature: softmax temperature.
        share: see `pixel_shares`.
    """
    loss = F.cross_entropy((logits / temperature).flatten(0, 2), target.flatten(), weight=weight)
    return loss if share is None else loss * share


def pixel_shares(
    passes: Sequence[Sequence[Int[Tensor, "N H W"]]], clusters: Sequence[ViewClusters]
) -> list[Float[Tensor, " V"] | None]:
    """Factor of the loss of each pass and view of this process, which is a mean with weights.

    The sum over passes, averaged over processes, is then the mean over all pixels of the batch.

    Args:
        passes: cluster ids of both views' pixels, for each pass.
        clusters: of both views.

    Returns:
        None for one pass in one process.
    """
    if distributed.world_size() == len(passes) == 1:
        return [None]
    weights = [view.weight for view in clusters]
    sums = torch.stack(
        [
            torch.stack([weight[one].sum() for weight, one in zip(weights, targets, strict=True)])
            for targets in passes
        ]
    )
    return list(distributed.loss_factor(sums, sums.sum(0)))


def siamese_loss(
    pixels: tuple[Pixels, Pixels],
    targets: tuple[Int[Tensor, "N H W"], Int[Tensor, "N H W"]],
    clusters: tuple[ViewClusters, ViewClusters],
    shares: Float[Tensor, " V"] | None = None,
    *,
    temperature: float,
    cross_weight: float,
    metric: Metric,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """L_pix = (1 - c) L_within + c L_cross, each the mean of the two views (Eq. 1 to 3).

    Within: the features of a view against its own clusters. Cross: against the cluster ids and centroids of
    the other view.

    Returns:
        The total loss, the within-view term and the cross-view term.
    """
    centroids = torch.cat([view.centroids for view in clusters])
    sizes = [len(view.centroids) for view in clusters]
    logits = [pixel_logits(view, centroids, metric).split(sizes, dim=-1) for view in pixels]

    def term(view: int, clustered: int) -> Tensor:
        share = None if shares is None else shares[clustered]
        weight = clusters[clustered].weight
        return pixel_loss(logits[view][clustered], targets[clustered], weight, temperature, share)

    within = (term(0, 0) + term(1, 1)) / 2
    cross = (term(0, 1) + term(1, 0)) / 2
    return (1 - cross_weight) * within + cross_weight * cross, within, cross


def guidance_loss(
    logits: Float[Tensor, "N K"],
    pseudo_label: Int[Tensor, " N"],
    weight: Float[Tensor, " K"],
    label_smoothing: float = 0.0,
    whole: Int[Tensor, " M"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """L_img, the cross-entropy of class scores against pseudo-labels (Eq. 6), and the accuracy.

    Args:
        logits: output of the image head.
        pseudo_label: pseudo-label of each view.
        weight: loss weight of each pseudo-label.
        label_smoothing: share of the target that all pseudo-labels get, each by its weight (as in torch).
        whole: pseudo-labels of all passes of this process; None if there is but one.
    """
    share = None
    if whole is not None or distributed.world_size() > 1:
        part, all_parts = (
            torch.stack([weight[labels].sum(), logits.new_full((), len(labels))])
            for labels in (pseudo_label, pseudo_label if whole is None else whole)
        )
        share = distributed.loss_factor(part, all_parts)
    if not len(logits):  # this process has no view in this pass, but must join the all-reduce
        return logits.sum(), logits.new_zeros(())
    right = (logits.argmax(1) == pseudo_label).float().mean()
    if label_smoothing:  # torch's own mean waits for a GPU, to select the labels that it does not ignore
        smoothed = F.cross_entropy(
            logits, pseudo_label, weight, reduction="sum", label_smoothing=label_smoothing
        )
        loss = smoothed / weight[pseudo_label].sum()
    else:
        loss = F.cross_entropy(logits, pseudo_label, weight)
    return (loss, right) if share is None else (loss * share[0], right * share[1])


def cluster_weights(counts: Int[Tensor, " K"], balance: str) -> Float[Tensor, " K"]:
    """Loss weight of each cluster, with mean 1 over clusters.

    Args:
        counts: size of each cluster; an empty cluster is counted as size 1.
        balance: `none`; `frequency` gives large clusters more weight, as PiCIE's code does; `inverse` less.
    """
    if balance == "none":
        return torch.ones(len(counts))
    counts = counts.float().clamp_min(1)
    weight = counts if balance == "frequency" else 1 / counts
    return weight / weight.mean()
