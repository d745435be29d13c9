"""The losses of pixel-cluster training (3, 4.1, 4.2.2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class ViewClusters(NamedTuple):
    """The clusters of one view, fixed for an epoch."""

    centroids: Float[Tensor, "K D"]
    weight: Float[Tensor, " K"]


def assign_pixels(feature: Float[Tensor, "N D H W"], centroids: Float[Tensor, "K D"]) -> Int[Tensor, "N H W"]:
    """The nearest centroid of every pixel by cosine."""
    return F.conv2d(feature, centroids[:, :, None, None]).argmax(1)


def pixel_loss(
    feature: Float[Tensor, "N D H W"],
    target: Int[Tensor, "N H W"],
    clusters: ViewClusters,
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of pixels against fixed centroids: -log softmax(cos(z, mu) / temperature)[y] (Eq. 4).

    Args:
        feature: unit length.
        target: cluster id of every pixel.
        clusters: centroids, and a weight for each.
        temperature: of the softmax.
    """
    logits = F.conv2d(feature, clusters.centroids[:, :, None, None]) / temperature
    return F.cross_entropy(logits, target, weight=clusters.weight)


def siamese_loss(
    features: tuple[Float[Tensor, "N D H W"], Float[Tensor, "N D H W"]],
    targets: tuple[Int[Tensor, "N H W"], Int[Tensor, "N H W"]],
    clusters: tuple[ViewClusters, ViewClusters],
    *,
    temperature: float,
    cross_weight: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """L_pix = (1 - c) L_within + c L_cross, each the mean of the two views (Eq. 1 to 3).

    Within: a view's features to its own clusters. Cross: to the clusters that the other view's pixels
    have, among the other view's centroids.

    Returns:
        The whole, the within-view and the cross-view term.
    """

    def term(view: int, clustered: int) -> Tensor:
        return pixel_loss(features[view], targets[clustered], clusters[clustered], temperature)

    within = (term(0, 0) + term(1, 1)) / 2
    cross = (term(0, 1) + term(1, 0)) / 2
    return (1 - cross_weight) * within + cross_weight * cross, within, cross


def guidance_loss(
    logits: Float[Tensor, "N K"], pseudo_label: Int[Tensor, " N"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """L_img, the cross-entropy of class scores against pseudo-labels (Eq. 6), and the share that is right."""
    accuracy = (logits.argmax(1) == pseudo_label).float().mean()
    return F.cross_entropy(logits, pseudo_label), accuracy


def cluster_weights(assignment: Int[Tensor, " P"], num_clusters: int, balance: str) -> Float[Tensor, " K"]:
    """Weight of each cluster in the pixel loss, mean 1 over the clusters.

    Args:
        assignment: clusters of a sample of pixels.
        num_clusters: K.
        balance: `none`; `frequency` weighs large clusters more, as PiCIE's code does; `inverse` less.
    """
    if balance == "none":
        return torch.ones(num_clusters)
    counts = torch.bincount(assignment, minlength=num_clusters).float().clamp_min(1)
    weight = counts if balance == "frequency" else 1 / counts
    return weight / weight.mean()
