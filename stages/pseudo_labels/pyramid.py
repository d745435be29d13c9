"""The six pyramid views of an image (4.2.1): the whole image, four corners and the center."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

VIEWS = ("whole", "top left", "top right", "bottom left", "bottom right", "centre")
NOT_KEPT = -1  # in place of the pseudo-label of a view that does not guide


def view_boxes(crop_ratio: float) -> Float[Tensor, "6 4"]:
    """(top, left, height, width) of each view in fractions of the image's sides.

    Args:
        crop_ratio: side of the five crops; the paper does not give it.
    """
    far, middle = 1 - crop_ratio, (1 - crop_ratio) / 2
    corners = [(0.0, 0.0), (0.0, far), (far, 0.0), (far, far), (middle, middle)]
    return torch.tensor(
        [(0.0, 0.0, 1.0, 1.0), *((top, left, crop_ratio, crop_ratio) for top, left in corners)]
    )


def has_parts(kept_views: Int[np.ndarray, "N V"]) -> bool:
    """Whether a view other than the whole image, which comes first, guides."""
    return bool((kept_views[:, 1:] != NOT_KEPT).any())
