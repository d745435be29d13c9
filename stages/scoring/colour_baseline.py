"""Baseline: k-means on the color and position of pixels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from stages.clustering.kmeans import KMeans, assign
from stages.core.images import open_images
from stages.core.seeds import faiss_seed, numpy_generator
from stages.dataset.truth import Truth
from stages.scoring.confusion import Tally, tally
from stages.settings.errors import UserError
from stages.settings.schema import Evaluate

CHUNK_PIXELS = 2**20


def tally_colour_position(
    folder: Path, truth: Truth, settings: Evaluate, *, num_clusters: int, seed: int
) -> Tally:
    """Confusion counts of color-position clusters, fitted on the training images.

    Args:
        folder: folder of the packed images.
        truth: label maps of the validation images.
        settings: `evaluate` of params.yaml.
        num_clusters: K.
        seed: seed of the sample and of k-means.

    Raises:
        UserError: images and label maps do not match.
    """
    train, val = open_images(folder / "train"), open_images(folder / "val")
    if val.shape[:3] != truth.maps.shape:
        raise UserError(
            f"{folder / 'val'}: holds images {list(val.shape)}, but the label maps have shape "
            f"{list(truth.maps.shape)}; run `dvc repro prepare`"
        )
    centroids = fit_colour_position(train, settings, num_clusters=num_clusters, seed=seed)
    maps = assign_colour_position(val, centroids)
    return tally(maps, truth.maps, num_classes=len(truth.class_names), num_clusters=num_clusters)


def fit_colour_position(
    images: UInt8[np.ndarray, "N T T 3"], settings: Evaluate, *, num_clusters: int, seed: int
) -> Float32[np.ndarray, "num_clusters 5"]:
    """Centroids of k-means on (R, G, B, row, column), each in [0, 1], over a seeded sample of pixels."""
    random = numpy_generator(seed, "evaluate", "colour_baseline")
    chosen = np.sort(random.choice(len(images), min(len(images), settings.baseline_images), replace=False))
    grid = settings.baseline_grid
    cells = np.unique(np.arange(grid) * images.shape[1] // grid)
    sample = np.concatenate(
        [_features(images[index])[np.ix_(cells, cells)].reshape(-1, 5) for index in chosen]
    )
    kmeans = KMeans(
        min(num_clusters, len(sample)),
        iterations=settings.baseline_iterations,
        restarts=settings.baseline_restarts,
        spherical=False,
    )
    seed = faiss_seed(seed, "evaluate", "colour_baseline")
    return kmeans.fit(torch.from_numpy(sample), seed=seed).numpy()


def assign_colour_position(
    images: UInt8[np.ndarray, "M S S 3"], centroids: Float32[np.ndarray, "K 5"]
) -> Iterator[tuple[slice, UInt8[np.ndarray, "B S S"]]]:
    """The nearest centroid of each pixel, in chunks: (images, their cluster ids)."""
    step = max(1, CHUNK_PIXELS // images.shape[1] ** 2)
    for start in range(0, len(images), step):
        rows = slice(start, min(start + step, len(images)))
        features = np.stack([_features(image) for image in images[rows]])
        points = torch.from_numpy(features).flatten(0, 2)
        nearest, _ = assign(points, torch.from_numpy(centroids), "euclidean")
        yield rows, nearest.byte().view(features.shape[:3]).numpy()


def _features(image: UInt8[np.ndarray, "S S 3"]) -> Float32[np.ndarray, "S S 5"]:
    """Color and position of the pixel center, each in [0, 1]."""
    side = image.shape[0]
    centre = (np.arange(side, dtype=np.float32) + 0.5) / side
    position = np.stack(np.meshgrid(centre, centre, indexing="ij"), -1)
    return np.concatenate([image.astype(np.float32) / 255, position], -1)
