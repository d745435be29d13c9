"""One global feature for each pyramid view, from the pretrained trunk (4.2.1)."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

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
    settings: Embed,
    *,
    first: int = 0,
    crop_ratio: float,
    size_px: int,
    precision: str,
) -> Iterator[Float[Tensor, "B 6 D"]]:
    """Features of all six views of every image, float32 on the CPU, batch by batch.

    Each view is resized and its centre taken, as the self-supervised models are evaluated (A.1). A feature
    keeps its length: projection heads and classifiers, which `label` may use, want it.

    Args:
        backbone: the pretrained trunk; used in evaluation mode.
        images: N of them.
        settings: batch size and centre ratio.
        first: image to begin with, a whole number of batches from the start.
        crop_ratio: side of the five crops.
        size_px: side at which the trunk sees a view.
        precision: of the forward pass.
    """
    backbone = place(backbone, images.device).eval()
    batches = in_order(len(images), settings.batch_size)[-(-first // settings.batch_size) :]
    for image in track(images.batches(batches), "embed", total=len(batches), unit="batch"):
        features = []
        for view in range(len(VIEWS)):
            boxes = crop_boxes(torch.full((len(image),), view), crop_ratio, settings.centre_ratio)
            crop = resample(image, boxes.to(images.device), (size_px, size_px))
            with autocast(images.device, precision):
                features.append(backbone.global_feature(normalise(crop)).cpu())
        yield torch.stack(features, 1)
