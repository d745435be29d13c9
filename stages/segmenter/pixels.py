"""Pixel features and their similarity to centroids (3, 4.1)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stages.settings.schema_train import Metric

EPSILON = 1e-12  # minimum feature norm, as in F.normalize


class Pixels(NamedTuple):
    """Pixel features of a network, channels last for matrix products.

    Normalization is deferred: dividing K scores is cheaper than dividing D channels.
    """

    feature: Float[Tensor, "N H W D"]  # output of the network
    is_unit: bool  # whether features are to be normalized to unit length

    @classmethod
    def of_map(cls, feature: Float[Tensor, "N D H W"], *, is_unit: bool) -> "Pixels":
        """The pixels of a feature map."""
        return cls(feature.permute(0, 2, 3, 1), is_unit)

    @property
    def per_image(self) -> int:
        """Number of pixels per image."""
        return self.feature.shape[1] * self.feature.shape[2]

    def at(self, places: Int[Tensor, "N P"]) -> Float[Tensor, "N P D"]:
        """Features at given pixel indices (row-major) of each image; normalized if `is_unit`."""
        images = torch.arange(len(places), device=places.device)[:, None]
        chosen = self.feature.flatten(1, 2)[images, places]
        return F.normalize(chosen, dim=2, eps=EPSILON) if self.is_unit else chosen

    def all(self) -> Float[Tensor, "P D"]:
        """Features of all pixels; normalized if `is_unit`."""
        flat = self.feature.flatten(0, 2)
        return F.normalize(flat, dim=1, eps=EPSILON) if self.is_unit else flat


def pixel_logits(pixels: Pixels, centroids: Float[Tensor, "K D"], metric: Metric) -> Float[Tensor, "N H W K"]:
    """Similarity of each pixel to each centroid.

    dot: z . mu, the cosine if both have unit length. euclidean: 2 z . mu - |mu|^2, the negative squared
    distance plus |z|^2, which is constant over centroids and affects neither softmax nor argmax.
    """
    product = pixels.feature @ centroids.T
    if pixels.is_unit:
        product = product / pixels.feature.norm(dim=-1, keepdim=True).clamp_min(EPSILON)
    return product if metric == "dot" else 2 * product - centroids.square().sum(1)


def assign_pixels(pixels: Pixels, centroids: Float[Tensor, "K D"], metric: Metric) -> Int[Tensor, "N H W"]:
    """The nearest centroid of every pixel; ties go to the lower id."""
    if metric == "dot":
        pixels = pixels._replace(is_unit=False)  # the norm of a pixel does not affect the argmax
    return pixel_logits(pixels, centroids, metric).argmax(-1)
