"""The clustering that gives the classes, once training is over (5.1, Evaluation)."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from stages.clustering.kmeans import euclidean_kmeans, spherical_kmeans
from stages.clustering.minibatch import MiniBatchKMeans
from stages.imaging.source import ImageSource
from stages.runtime.schema import Cluster
from stages.runtime.seeds import faiss_seed
from stages.segmentation.inference import all_pixel_features
from stages.segmentation.network import Segmenter

RUNS = 2  # the second shows how stable the first is


def cluster_sample(
    pixels: Float[np.ndarray, "P D"], settings: Cluster, *, pixel_k: int, seed: int, device: torch.device
) -> list[Float[np.ndarray, "K D"]]:
    """Centroids of a sample of pixels, from two starts.

    Args:
        pixels: unit length.
        settings: `cluster` of params.yaml.
        pixel_k: K.
        seed: of both starts.
        device: where k-means works.
    """
    kmeans = spherical_kmeans if settings.unit_centroids else euclidean_kmeans
    return [
        kmeans(
            pixels,
            pixel_k,
            iterations=settings.iterations,
            restarts=settings.restarts,
            seed=faiss_seed(seed, "cluster", attempt),
            device=device,
        )
        for attempt in range(RUNS)
    ]


def cluster_all(
    segmenter: Segmenter,
    images: ImageSource,
    settings: Cluster,
    *,
    pixel_k: int,
    size_px: int,
    seed: int,
    precision: str,
) -> list[Float[np.ndarray, "K D"]]:
    """Centroids of all pixels of all images by mini-batch k-means from two starts, in one pass."""
    runs = [
        MiniBatchKMeans(
            pixel_k,
            init_batches=settings.init_batches,
            iterations=settings.iterations,
            restarts=settings.restarts,
            seed=faiss_seed(seed, "cluster", attempt),
            device=images.device,
        )
        for attempt in range(RUNS)
    ]
    for pixels in all_pixel_features(
        segmenter, images, size_px=size_px, batch_size=settings.batch_size, seed=seed, precision=precision
    ):
        for run in runs:
            run.add(pixels)
    centroids = [torch.from_numpy(run.centroids()) for run in runs]
    return [(F.normalize(one, dim=1) if settings.unit_centroids else one).numpy() for one in centroids]
