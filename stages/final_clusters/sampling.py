"""What a trained network makes of training images: pixel features, batch-norm statistics, cluster maps."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.optim.swa_utils import update_bn

from stages.core import distributed
from stages.core.device import autocast, torch_generator
from stages.imaging.batches import ImageSource, shuffled
from stages.imaging.resample import resample, whole
from stages.runtime.progress import track
from stages.segmenter.network import Segmenter, pixel_features
from stages.segmenter.pixels import assign_pixels
from stages.settings.schema import Params


@torch.no_grad()
def sample_pixel_features(segmenter: Segmenter, images: ImageSource, params: Params) -> Float[Tensor, "P D"]:
    """Features of randomly sampled pixels of sampled images, without augmentation (5.1), on their device.

    Args:
        segmenter: network on the device of `images`; in training mode its batch-norm statistics change.
        images: training images.
        params: settings; `cluster` has the number of images and the approximate number of pixels, which is
            split evenly over the images.
    """
    settings = params.cluster
    generator = torch_generator(params.seed, "cluster", "sample")
    count = min(settings.sample_images, len(images))
    per_image = max(1, settings.sample_pixels // count)
    drawn = torch.randperm(len(images), generator=generator)[:count].sort().values
    batches = batches_of(drawn, settings.batch_size, segmenter)
    taken = []
    shares = [distributed.share(rows) for rows in batches]
    source = track(images.batches(shares), "pixel features", total=len(batches), unit="batch")
    for rows, image in zip(batches, source, strict=True):
        pixels = pixel_features(segmenter, at_size(image, params.size_px), params.precision)
        chances = torch.rand(len(rows), pixels.per_image, generator=generator)
        places = distributed.share(chances).topk(min(per_image, pixels.per_image)).indices
        chosen = pixels.at(places.to(image.device))
        taken.append(distributed.assemble(chosen, len(rows)).flatten(0, 1))
    return torch.cat(taken)


def batches_of(rows: Int64[Tensor, " N"], size: int, segmenter: Segmenter) -> list[Int64[Tensor, " n"]]:
    """Batches of row indices; one image alone has no statistics that batch norm could take in training."""
    return [part for part in rows.split(size) if len(part) > 1 or not segmenter.training]


@torch.no_grad()
def all_pixel_features(
    segmenter: Segmenter, images: ImageSource, batches: Sequence[Tensor], params: Params
) -> Iterator[Float[Tensor, "P D"]]:
    """Yield the features of every pixel of batches of row indices, on the device of the images.

    In training mode the forward pass updates the batch-norm running statistics, as PiCIE does.
    """
    shares = [distributed.share(rows) for rows in batches]
    source = track(images.batches(shares), "pixel features", total=len(batches), unit="batch")
    for rows, image in zip(batches, source, strict=True):
        pixels = pixel_features(segmenter, at_size(image, params.size_px), params.precision)
        yield pixels._replace(feature=distributed.assemble(pixels.feature, len(rows))).all()


def at_size(image: Float[Tensor, "N 3 H W"], size_px: int) -> Float[Tensor, "N 3 S S"]:
    """Images at the working size."""
    if image.shape[2] == size_px:
        return image
    return resample(image, whole(len(image), image.device), (size_px, size_px))


def estimate_batch_norm(segmenter: Segmenter, images: ImageSource, params: Params) -> None:
    """Replace the running batch-norm statistics by the mean over batches of clean images (ours).

    Training leaves statistics of augmented views, a third of them of small guidance views. Frozen statistics
    (`train.freeze`) stay as they are.
    """
    order = torch_generator(params.seed, "cluster", "batch norm")
    batches = shuffled(len(images), min(params.cluster.batch_size, len(images)), order)
    shares = [distributed.share(rows) for rows in batches]
    source = track(images.batches(shares), "batch norm", total=len(batches), unit="batch")
    resized = (_at_size_in_float32(image, params.size_px) for image in source)  # called from within autocast
    with autocast(images.device, params.precision):
        update_bn(resized, segmenter)


def _at_size_in_float32(image: Float[Tensor, "N 3 H W"], size_px: int) -> Float[Tensor, "N 3 S S"]:
    with torch.autocast(image.device.type, enabled=False):
        return at_size(image, size_px)


@torch.no_grad()
def cluster_maps(
    segmenter: Segmenter,
    centroids: Float[Tensor, "K D"],
    images: ImageSource,
    *,
    count: int,
    size_px: int,
    params: Params,
) -> Int64[np.ndarray, "N h w"]:
    """Cluster of every feature pixel of the same sampled images, whatever the network.

    Args:
        segmenter: network on the device of `images`, in evaluation mode.
        centroids: of the clusters.
        images: training images.
        count: largest number of images.
        size_px: side of the network input.
        params: `seed`, `precision` and `cluster` of params.yaml.
    """
    generator = torch_generator(params.seed, "cluster", "continue")
    drawn = torch.randperm(len(images), generator=generator)[:count].sort().values
    maps = []
    for image in images.batches(drawn.split(params.cluster.batch_size)):
        pixels = pixel_features(segmenter, at_size(image, size_px), params.precision)
        maps.append(assign_pixels(pixels, centroids.to(images.device), segmenter.metric).cpu().numpy())
    return np.concatenate(maps)
