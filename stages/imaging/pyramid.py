"""The six pyramid views of an image (4.2.1): the whole, its four corners, its centre."""

import torch
from jaxtyping import Float
from torch import Tensor

from stages.imaging.resample import Boxes

VIEWS = ("whole", "top left", "top right", "bottom left", "bottom right", "centre")


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


def crop_boxes(views: Tensor, crop_ratio: float, centre_ratio: float = 1.0) -> Boxes:
    """The boxes of one view number for each image.

    Args:
        views: [N] numbers into `VIEWS`.
        crop_ratio: side of the five crops.
        centre_ratio: side of the centre of each view that is taken (A.1: 224 of 256).
    """
    top, left, height, width = view_boxes(crop_ratio)[views].unbind(1)
    margin = (1 - centre_ratio) / 2
    return Boxes(
        top + margin * height,
        left + margin * width,
        centre_ratio * height,
        centre_ratio * width,
        torch.zeros(len(views)),
    )
