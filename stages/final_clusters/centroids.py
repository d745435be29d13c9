"""Two clusterings of the pixel features: of a sample, of every pixel, or those of the last epoch (5.1).

The first is the result; how far the second agrees with it is a figure.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stages.clustering.kmeans import KMeans, MiniBatchKMeans
from stages.core.device import torch_generator
from stages.core.seeds import faiss_seed
from stages.final_clusters.sampling import all_pixel_features, batches_of
from stages.imaging.batches import ImageSource
from stages.segmenter.network import Segmenter
from stages.segmenter.segmenter_file import load_trained_clusters
from stages.settings.errors import UserError
from stages.settings.schema import Params
from stages.settings.schema_train import Cluster

RUNS = 2  # the second run measures the stability of the first


def cluster_sample(
    pixels: Float[Tensor, "P D"], settings: Cluster, *, pixel_k: int, seed: int
) -> list[Float[Tensor, "K D"]]:
    """Compute the k-means centroids of sampled pixel features from two random starts.

    Args:
        pixels: features of unit length.
        settings: `cluster` of params.yaml.
        pixel_k: K.
        seed: base seed of both starts.
    """
    kmeans = KMeans.of(settings, pixel_k, spherical=settings.unit_centroids)
    return [kmeans.fit(pixels, seed=one) for one in _seeds(seed)]


def cluster_all(segmenter: Segmenter, images: ImageSource, params: Params) -> list[Float[Tensor, "K D"]]:
    """Cluster every pixel of every image by mini-batch k-means from two random starts, in one pass."""
    settings = params.cluster
    order = torch.randperm(len(images), generator=torch_generator(params.seed, "cluster", "order"))
    batches = batches_of(order, settings.batch_size, segmenter)
    kmeans = KMeans.of(settings, params.pixel_k, spherical=False)
    runs = MiniBatchKMeans(
        kmeans, init_batches=settings.init_batches, num_batches=len(batches), seeds=_seeds(params.seed)
    )
    for pixels in all_pixel_features(segmenter, images, batches, params):
        runs.add(pixels)
    return [F.normalize(one, dim=1) if settings.unit_centroids else one for one in runs.centroids()]


def trained_clusters(segmenter: Path, view: str, *, pixel_k: int) -> list[Float[Tensor, "K D"]]:
    """Read the centroids of the last training epoch: those of `view` first, then those of the other view.

    Args:
        segmenter: file written by `train`.
        view: first_view or second_view.
        pixel_k: K.

    Raises:
        UserError: the file has no centroids, or their number is not `pixel_k`.
    """
    clusters = load_trained_clusters(segmenter)
    chosen = clusters.pop(view)
    if len(chosen) != pixel_k:
        raise UserError(
            f"{segmenter}: was trained with {len(chosen)} clusters, but params.yaml has pixel_k: {pixel_k}; "
            "run `dvc repro train`, or set cluster.centroids: fresh"
        )
    return [chosen, *clusters.values()]


def _seeds(seed: int) -> list[int]:
    return [faiss_seed(seed, "cluster", attempt) for attempt in range(RUNS)]
