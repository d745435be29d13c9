"""The clustering that gives the classes, once training is over (5.1, Evaluation)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from stages.clustering.kmeans import KMeans
from stages.clustering.minibatch import MiniBatchKMeans
from stages.imaging.source import ImageSource
from stages.runtime.errors import UserError
from stages.runtime.schema import Cluster
from stages.runtime.seeds import faiss_seed
from stages.segmentation.inference import all_pixel_features
from stages.segmentation.network import Segmenter, load_trained_clusters

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
    kmeans = KMeans.of(settings, pixel_k, device, spherical=settings.unit_centroids)
    return [kmeans.fit(pixels, seed=one) for one in _seeds(seed)]


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
    kmeans = KMeans.of(settings, pixel_k, images.device, spherical=False)
    runs = [MiniBatchKMeans(kmeans, init_batches=settings.init_batches, seed=one) for one in _seeds(seed)]
    for pixels in all_pixel_features(
        segmenter, images, size_px=size_px, batch_size=settings.batch_size, seed=seed, precision=precision
    ):
        for run in runs:
            run.add(pixels)
    centroids = [torch.from_numpy(run.centroids()) for run in runs]
    return [(F.normalize(one, dim=1) if settings.unit_centroids else one).numpy() for one in centroids]


def trained_clusters(segmenter: Path, view: str, *, pixel_k: int) -> list[Float[np.ndarray, "K D"]]:
    """Centroids that the last epoch of training followed: those of `view`, then those of the other.

    Args:
        segmenter: file of `train`.
        view: first_view or second_view.
        pixel_k: K.

    Raises:
        UserError: the file holds none, or another number of them.
    """
    clusters = load_trained_clusters(segmenter)
    chosen = clusters.pop(view)
    if len(chosen) != pixel_k:
        raise UserError(
            f"{segmenter}: was trained with {len(chosen)} clusters, but params.yaml says pixel_k: {pixel_k}; "
            "run `dvc repro train`, or set cluster.centroids: fresh"
        )
    return [chosen.numpy(), *(other.numpy() for other in clusters.values())]


def _seeds(seed: int) -> list[int]:
    return [faiss_seed(seed, "cluster", attempt) for attempt in range(RUNS)]
