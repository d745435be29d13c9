"""Which pixels k-means is given, in training and in the end: told by features that are places (3, 5.1)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.final_clusters.sampling import sample_pixel_features
from stages.imaging.batches import ImageSource
from stages.settings.params import load
from stages.train import KEYS
from stages.training.clusters import PixelClusterer
from stages.training.siamese import Siamese

CPU = torch.device("cpu")
NUM_IMAGES, SIDE = 40, 32


class Places(nn.Module):
    """A network whose features are every second pixel of its input."""

    metric = "euclidean"  # features keep their length

    def forward(self, image: Tensor, colors: Tensor | None = None) -> Tensor:
        return image[:, :, ::2, ::2]


def _images() -> ImageSource:
    """Every pixel says its image, its row and its column."""
    numbers = np.meshgrid(np.arange(NUM_IMAGES), np.arange(SIDE), np.arange(SIDE), indexing="ij")
    return ImageSource(np.stack(numbers, 3).astype(np.uint8), CPU)


def _check(pixels: Tensor, num_images: int, per_image: int) -> np.ndarray:
    """So many of so many images, from all over the set and from all over each of them; returns the places."""
    image, row, column = (pixels * 255).round().long().numpy().T
    places = row // 2 * (SIDE // 2) + column // 2
    rows, counts = np.unique(image, return_counts=True)
    assert len(rows) == num_images
    assert set(counts) == {per_image}
    assert np.histogram(rows, 4, (0, NUM_IMAGES))[0].all()
    of_images = [tuple(sorted(places[image == one])) for one in rows]
    assert all(len(set(one)) == per_image for one in of_images), "no pixel twice"
    assert len(set(of_images)) == num_images, "each image has places of its own"
    in_quarters = np.histogram2d(row, column, 2, ((0, SIDE), (0, SIDE)))[0]
    assert in_quarters.min() >= len(pixels) / 5
    return places


def test_the_final_clustering_is_of_random_pixels_of_random_images(tiny_params: Callable[..., Path]) -> None:
    changes = {"cluster.sample_images": 24, "cluster.sample_pixels": 24 * 50}
    params = load(tiny_params(changes), "seed", "size_px", "precision", "cluster")
    network: Any = Places().eval()
    _check(sample_pixel_features(network, _images(), params), 24, 50)


def test_an_epoch_clusters_random_pixels_of_random_images(
    tiny_params: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each view others; here the views change nothing."""
    params = load(
        tiny_params(
            {
                "train.crop_side": [1.0, 1.0],
                "train.flip_probability": 0.0,
                "train.photometric.jitter_probability": 0.0,
                "train.photometric.gray_probability": 0.0,
                "train.photometric.blur_probability": 0.0,
                "train.pixel_loss.metric": "euclidean",
                "train.clustering.unit_centroids": False,
                "train.clustering.assign": "euclidean",
                "train.clustering.sample_images": 24,
                "train.clustering.sample_pixels": 24 * 50,
                "cluster.unit_centroids": False,
            }
        ),
        *KEYS,
    )
    siamese = Siamese(params.train, size_px=params.size_px, precision="float32")
    clusterer = PixelClusterer(params.train, siamese, pixel_k=params.pixel_k, seed=params.seed)
    given: list[Tensor] = []
    monkeypatch.setattr(clusterer, "_of_pixels", lambda pixels, *_: given.append(pixels))
    network: Any = Places()
    for epoch in range(2):
        clusterer.cluster(network, _images(), [], epoch)
    places = [_check(pixels, 24, 50) for pixels in given]
    assert len({one.tobytes() for one in places}) == 4
