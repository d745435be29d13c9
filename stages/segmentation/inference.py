"""What a trained network says of images: sampled pixel features, and scores of every pixel."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stages.imaging.resample import resample, whole
from stages.imaging.source import ImageSource, in_order
from stages.runtime import distributed
from stages.runtime.device import autocast
from stages.runtime.generators import torch_generator
from stages.runtime.progress import track
from stages.segmentation.network import Segmenter


@torch.no_grad()
def sample_pixel_features(
    segmenter: Segmenter,
    images: ImageSource,
    *,
    size_px: int,
    num_images: int,
    num_pixels: int,
    batch_size: int,
    seed: int,
    precision: str,
) -> Float[np.ndarray, "P D"]:
    """Unit features of random pixels of random images, without augmentation (5.1).

    Args:
        segmenter: in evaluation mode, on the device of `images`.
        images: of the training set.
        size_px: side at which the network sees them.
        num_images: at most so many images are looked at.
        num_pixels: about so many pixels are taken, the same number from each image.
        batch_size: images at once.
        seed: of the sample.
        precision: of the forward pass.
    """
    generator = torch_generator(seed, "cluster", "sample")
    count = min(num_images, len(images))
    per_image = max(1, num_pixels // count)
    batches = list(torch.randperm(len(images), generator=generator)[:count].sort().values.split(batch_size))
    taken = []
    shares = [distributed.share(rows) for rows in batches]
    source = track(images.batches(shares), "pixel features", total=len(batches), unit="batch")
    for rows, image in zip(batches, source, strict=True):
        with autocast(images.device, precision):
            feature = segmenter(_at_size(image, size_px)).flatten(2)
        places = torch.rand(len(rows), feature.shape[2], generator=generator)
        places = distributed.share(places).topk(min(per_image, feature.shape[2])).indices.to(feature.device)
        chosen = feature.gather(2, places[:, None].expand(-1, feature.shape[1], -1)).transpose(1, 2)
        taken.append(distributed.assemble(chosen, len(rows)).flatten(0, 1).cpu().numpy())
    return np.concatenate(taken)


@torch.no_grad()
def all_pixel_features(
    segmenter: Segmenter, images: ImageSource, *, size_px: int, batch_size: int, seed: int, precision: str
) -> Iterator[Float[np.ndarray, "P D"]]:
    """Unit features of every pixel of every image, a batch at a time in random order.

    In training mode the network's running statistics move, as they do where PiCIE clusters.
    """
    order = torch.randperm(len(images), generator=torch_generator(seed, "cluster", "order"))
    batches = [rows for rows in order.split(batch_size) if len(rows) > 1]  # batch norm needs two
    shares = [distributed.share(rows) for rows in batches]
    source = track(images.batches(shares), "pixel features", total=len(batches), unit="batch")
    for rows, image in zip(batches, source, strict=True):
        with autocast(images.device, precision):
            feature = distributed.assemble(segmenter(_at_size(image, size_px)), len(rows))
        yield feature.permute(0, 2, 3, 1).flatten(0, 2).cpu().numpy()


@torch.no_grad()
def pixel_scores(
    segmenter: Segmenter, image: Float[Tensor, "N 3 S S"], centroids: Float[Tensor, "K D"], precision: str
) -> Float[Tensor, "N K H W"]:
    """Product of every pixel's unit feature with every centroid, at the feature map's resolution.

    The cosine where centroids are units.
    """
    with autocast(image.device, precision):
        feature = segmenter(image)
    return F.conv2d(feature, centroids[:, :, None, None])


def score_images(
    segmenter: Segmenter,
    images: ImageSource,
    centroids: Float[Tensor, "K D"],
    *,
    batch_size: int,
    precision: str,
    first: int = 0,
) -> Iterator[Float[Tensor, "B K H W"]]:
    """The scores of all images on the CPU, batch by batch, from image `first` (whole batches) on."""
    batches = in_order(len(images), batch_size)[-(-first // batch_size) :]
    for image in track(images.batches(batches), "predict", total=len(batches), unit="batch"):
        yield pixel_scores(segmenter, image, centroids, precision).cpu()


def _at_size(image: Float[Tensor, "N 3 H W"], size_px: int) -> Float[Tensor, "N 3 S S"]:
    if image.shape[2] == size_px:
        return image
    return resample(image, whole(len(image)).to(image.device), (size_px, size_px))
