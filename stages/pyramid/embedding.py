"""One global feature for each pyramid view, from the pretrained trunk (4.2.1)."""

import numpy as np
import torch
from jaxtyping import Float

from stages.imaging.normalise import normalise
from stages.imaging.pyramid import VIEWS, crop_boxes
from stages.imaging.resample import resample
from stages.imaging.source import ImageSource, in_order
from stages.nets.trunk import Trunk
from stages.runtime.device import autocast, place
from stages.runtime.progress import track
from stages.runtime.schema import Embed


@torch.no_grad()
def embed_views(
    backbone: Trunk,
    images: ImageSource,
    embeddings: Float[np.ndarray, "N 6 D"],
    settings: Embed,
    *,
    crop_ratio: float,
    size_px: int,
    precision: str,
) -> None:
    """Fill `embeddings`, usually a memory map, with the features of all six views of every image.

    Each view is resized and its centre taken, as the self-supervised models are evaluated (A.1). A feature
    keeps its length: projection heads and classifiers, which `label` may use, want it.

    Args:
        backbone: the pretrained trunk; used in evaluation mode.
        images: N of them.
        embeddings: float32.
        settings: batch size and centre ratio.
        crop_ratio: side of the five crops.
        size_px: side at which the trunk sees a view.
        precision: of the forward pass.
    """
    backbone = place(backbone, images.device).eval()
    batches = in_order(len(images), settings.batch_size)
    for rows, image in zip(track(batches, "embed", unit="batch"), images.batches(batches), strict=True):
        for view in range(len(VIEWS)):
            boxes = crop_boxes(torch.full((len(rows),), view), crop_ratio, settings.centre_ratio)
            crop = resample(image, boxes.to(images.device), (size_px, size_px))
            with autocast(images.device, precision):
                feature = backbone.global_feature(normalise(crop))
            embeddings[rows.numpy(), view] = feature.cpu().numpy()
