"""Features of pixels, and how near they are to centroids (3, 4.1)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

EPSILON = 1e-12  # that a feature of zeros has as its length, as in F.normalize


class Pixels(NamedTuple):
    """What a network makes of pixels, channels last: what follows is a matrix product over them.

    Units are not made before they are needed: to divide K scores costs less than to divide D channels.
    """

    feature: Float[Tensor, "N H W D"]  # as the network gives it
    is_unit: bool  # whether each pixel stands for its direction alone

    @classmethod
    def of_map(cls, feature: Float[Tensor, "N D H W"], *, is_unit: bool) -> "Pixels":
        """The pixels of a feature map."""
        return cls(feature.permute(0, 2, 3, 1), is_unit)

    @property
    def per_image(self) -> int:
        """Pixels of each image."""
        return self.feature.shape[1] * self.feature.shape[2]

    def at(self, places: Int[Tensor, "N P"]) -> Float[Tensor, "N P D"]:
        """Features at some places of each image, counted row by row; units where they are to be."""
        images = torch.arange(len(places), device=places.device)[:, None]
        chosen = self.feature.flatten(1, 2)[images, places]
        return F.normalize(chosen, dim=2, eps=EPSILON) if self.is_unit else chosen

    def all(self) -> Float[Tensor, "P D"]:
        """Features of all pixels; units where they are to be."""
        flat = self.feature.flatten(0, 2)
        return F.normalize(flat, dim=1, eps=EPSILON) if self.is_unit else flat


def pixel_logits(pixels: Pixels, centroids: Float[Tensor, "K D"], metric: str) -> Float[Tensor, "N H W K"]:
    """How near each pixel is to each centroid.

    dot: z . mu, the cosine where both are units. euclidean: 2 z . mu - |mu|^2, the negative squared
    distance but for |z|^2, which is the same for all centroids and so decides neither softmax nor maximum.
    """
    product = pixels.feature @ centroids.T
    if pixels.is_unit:
        product = product / pixels.feature.norm(dim=-1, keepdim=True).clamp_min(EPSILON)
    return product if metric == "dot" else 2 * product - centroids.square().sum(1)


def assign_pixels(
    pixels: Pixels, centroids: Float[Tensor, "K D"], metric: str = "dot"
) -> Int[Tensor, "N H W"]:
    """The nearest centroid of every pixel, of equals the first."""
    if metric == "dot":
        pixels = pixels._replace(is_unit=False)  # a pixel's length is the same for all centroids
    return pixel_logits(pixels, centroids, metric).argmax(-1)
