"""The losses of pixel-cluster training (3, 4.1, 4.2.2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stages.runtime import distributed


class ViewClusters(NamedTuple):
    """The clusters of one view, fixed for an epoch."""

    centroids: Float[Tensor, "K D"]
    weight: Float[Tensor, " K"]


def pixel_logits(
    feature: Float[Tensor, "N D H W"], centroids: Float[Tensor, "K D"], metric: str
) -> Float[Tensor, "N K H W"]:
    """How near each pixel is to each centroid.

    dot: z . mu, the cosine where both are units. euclidean: 2 z . mu - |mu|^2, the negative squared
    distance but for |z|^2, which is the same for all centroids and so decides neither softmax nor maximum.
    """
    product = F.conv2d(feature, centroids[:, :, None, None])
    return product if metric == "dot" else 2 * product - centroids.square().sum(1).view(1, -1, 1, 1)


def assign_pixels(
    feature: Float[Tensor, "N D H W"], centroids: Float[Tensor, "K D"], metric: str = "dot"
) -> Int[Tensor, "N H W"]:
    """The nearest centroid of every pixel."""
    return pixel_logits(feature, centroids, metric).argmax(1)


def pixel_loss(
    feature: Float[Tensor, "N D H W"],
    target: Int[Tensor, "N H W"],
    clusters: ViewClusters,
    temperature: float,
    metric: str = "dot",
) -> Float[Tensor, ""]:
    """Cross-entropy of pixels against fixed centroids: -log softmax(cos(z, mu) / temperature)[y] (Eq. 4).

    Of several processes, each gives its part: the mean over processes is the mean over all pixels.

    Args:
        feature: unit length, but for the metric `euclidean`.
        target: cluster id of every pixel.
        clusters: centroids, and a weight for each.
        temperature: of the softmax.
        metric: `dot` or `euclidean`, of `pixel_logits`.
    """
    logits = pixel_logits(feature, clusters.centroids, metric) / temperature
    loss = F.cross_entropy(logits, target, weight=clusters.weight)
    return loss * distributed.share_of(clusters.weight[target].sum())


def siamese_loss(
    features: tuple[Float[Tensor, "N D H W"], Float[Tensor, "N D H W"]],
    targets: tuple[Int[Tensor, "N H W"], Int[Tensor, "N H W"]],
    clusters: tuple[ViewClusters, ViewClusters],
    *,
    temperature: float,
    cross_weight: float,
    metric: str = "dot",
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """L_pix = (1 - c) L_within + c L_cross, each the mean of the two views (Eq. 1 to 3).

    Within: a view's features to its own clusters. Cross: to the clusters that the other view's pixels
    have, among the other view's centroids.

    Returns:
        The whole, the within-view and the cross-view term.
    """

    def term(view: int, clustered: int) -> Tensor:
        return pixel_loss(features[view], targets[clustered], clusters[clustered], temperature, metric)

    within = (term(0, 0) + term(1, 1)) / 2
    cross = (term(0, 1) + term(1, 0)) / 2
    return (1 - cross_weight) * within + cross_weight * cross, within, cross


def guidance_loss(
    logits: Float[Tensor, "N K"],
    pseudo_label: Int[Tensor, " N"],
    weight: Float[Tensor, " K"],
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """L_img, the cross-entropy of class scores against pseudo-labels (Eq. 6), and the share that is right.

    Args:
        logits: of the image head.
        pseudo_label: of each view.
        weight: of each pseudo-label.
        label_smoothing: share of the target that is spread over all pseudo-labels.
    """
    if not len(logits):  # of several processes, this one has no guided image in the batch
        distributed.share_of(logits.new_zeros(2))
        return logits.sum(), logits.new_zeros(())
    right = (logits.argmax(1) == pseudo_label).float().mean()
    loss = F.cross_entropy(logits, pseudo_label, weight, label_smoothing=label_smoothing)
    share = distributed.share_of(torch.stack([weight[pseudo_label].sum(), logits.new_tensor(len(logits))]))
    return loss * share[0], right * share[1]


def cluster_weights(counts: Int[Tensor, " K"], balance: str) -> Float[Tensor, " K"]:
    """Weight of each cluster in a loss, mean 1 over the clusters.

    Args:
        counts: members of each cluster; one without any counts as if it had one.
        balance: `none`; `frequency` weighs large clusters more, as PiCIE's code does; `inverse` less.
    """
    if balance == "none":
        return torch.ones(len(counts))
    counts = counts.float().clamp_min(1)
    weight = counts if balance == "frequency" else 1 / counts
    return weight / weight.mean()
