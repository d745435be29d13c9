"""What a trained network says of images: sampled pixel features, and scores of every pixel."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stages.imaging.resample import resample, whole
from stages.imaging.source import ImageSource, in_order
from stages.runtime import distributed
from stages.runtime.device import autocast
from stages.runtime.generators import torch_generator
from stages.runtime.progress import track
from stages.segmentation.network import Segmenter
from stages.segmentation.pixels import Pixels, pixel_logits


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
        pixels = _pixels(segmenter, _at_size(image, size_px), precision)
        chances = torch.rand(len(rows), pixels.per_image, generator=generator)
        places = distributed.share(chances).topk(min(per_image, pixels.per_image)).indices
        chosen = pixels.at(places.to(image.device))
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
        pixels = _pixels(segmenter, _at_size(image, size_px), precision)
        yield pixels._replace(feature=distributed.assemble(pixels.feature, len(rows))).all().cpu().numpy()


@torch.no_grad()
def pixel_scores(
    segmenter: Segmenter, image: Float[Tensor, "N 3 S S"], centroids: Float[Tensor, "K D"], precision: str
) -> Float[Tensor, "N K H W"]:
    """Product of every pixel's unit feature with every centroid, at the feature map's resolution.

    The cosine where centroids are units.
    """
    scores = pixel_logits(_pixels(segmenter, image, precision), centroids, "dot")
    return scores.permute(0, 3, 1, 2)


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


def _pixels(segmenter: Segmenter, image: Float[Tensor, "N 3 S S"], precision: str) -> Pixels:
    with autocast(image.device, precision):
        feature = segmenter(image)
    return Pixels.of_map(feature.float(), is_unit=True)


def _at_size(image: Float[Tensor, "N 3 H W"], size_px: int) -> Float[Tensor, "N 3 S S"]:
    if image.shape[2] == size_px:
        return image
    return resample(image, whole(len(image)).to(image.device), (size_px, size_px))
