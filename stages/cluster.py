"""Stage `cluster`: the final k-means of pixel features over the training images (5.1, Evaluation)."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.optim.swa_utils import update_bn

from stages.backbone.batch_norm import split_batch_norms
from stages.clustering.agreement import agreement, effective_clusters
from stages.clustering.kmeans import KMeans, MiniBatchKMeans, assign
from stages.core import distributed
from stages.core.artefacts import write_metrics
from stages.core.device import autocast, choose_device, enough_memory, place, set_numerics, torch_generator
from stages.core.images import open_images
from stages.core.seeds import faiss_seed
from stages.imaging.batches import ImageSource, shuffled
from stages.imaging.resample import resample, whole
from stages.runtime.environment import describe_environment
from stages.runtime.launch import launch
from stages.runtime.progress import say, track
from stages.runtime.script import run
from stages.runtime.watch import Watch
from stages.segmenter.network import Segmenter, pixel_features
from stages.segmenter.segmenter_file import load_segmenter, load_trained_clusters, save_final_clusters
from stages.settings.errors import UserError
from stages.settings.params import load
from stages.settings.schema_train import Cluster

KEYS = ("seed", "size_px", "pixel_k", "precision", "deterministic", "cluster")
RUNS = 2  # the second run measures the stability of the first
AGREEMENT_PIXELS = 20_000  # enough for three digits


@enough_memory("cluster.batch_size")
def main(argv: Sequence[str] | None = None) -> None:
    """Cluster the pixel features of the images twice and write the centroids of the first run."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    watch = Watch("cluster", args.params, KEYS, [args.images, args.segmenter])
    settings = params.cluster
    segmenter, _ = load_segmenter(args.segmenter)
    _check_metric(segmenter, settings)
    neutral = load(args.params, "device", "runtime")
    arguments = sys.argv[1:] if argv is None else argv
    if launch("stages.cluster", arguments, neutral.runtime, neutral.device):
        return
    device = distributed.join(choose_device(neutral.device), neutral.runtime.timeout_seconds)
    set_numerics(params.precision, deterministic=params.deterministic)
    split_batch_norms(segmenter, 1)
    images = ImageSource(open_images(args.images), device)
    place(segmenter, device)
    if settings.batch_norm == "fresh" and not segmenter.has_frozen_statistics:
        estimate_batch_norm(segmenter, images, params)
    segmenter.train(settings.batch_norm == "batch")
    pixels = None
    if settings.centroids != "fresh":
        runs = trained_clusters(args.segmenter, settings.centroids, pixel_k=params.pixel_k)
    elif settings.kmeans == "minibatch":
        runs = cluster_all(segmenter, images, params)
    else:
        pixels = sample_pixel_features(segmenter, images, params)
        runs = cluster_sample(pixels, settings, pixel_k=params.pixel_k, seed=params.seed, device=device)
    if pixels is None:
        pixels = sample_pixel_features(segmenter.eval(), images, params)
    figures = describe_clusters(pixels, runs, segmenter.metric)
    say("cluster", **figures)
    if distributed.is_leader():
        watch.check()
        moved = None if settings.batch_norm == "running" else segmenter
        save_final_clusters(args.out, torch.from_numpy(runs[0]), moved)
        write_metrics(args.metrics, {"cluster": {**figures, "environment": describe_environment(device)}})
    distributed.leave()


def cluster_sample(
    pixels: Float[np.ndarray, "P D"], settings: Cluster, *, pixel_k: int, seed: int, device: torch.device
) -> list[Float[np.ndarray, "K D"]]:
    """Compute the k-means centroids of sampled pixel features from two random starts.

    Args:
        pixels: features of unit length.
        settings: `cluster` of params.yaml.
        pixel_k: K.
        seed: base seed of both starts.
        device: device that runs k-means.
    """
    kmeans = KMeans.of(settings, pixel_k, device, spherical=settings.unit_centroids)
    return [kmeans.fit(pixels, seed=one) for one in _seeds(seed)]


def cluster_all(
    segmenter: Segmenter, images: ImageSource, params: SimpleNamespace
) -> list[Float[np.ndarray, "K D"]]:
    """Cluster every pixel of every image by mini-batch k-means from two random starts, in one pass."""
    settings = params.cluster
    kmeans = KMeans.of(settings, params.pixel_k, images.device, spherical=False)
    runs = [
        MiniBatchKMeans(kmeans, init_batches=settings.init_batches, seed=start)
        for start in _seeds(params.seed)
    ]
    for pixels in all_pixel_features(segmenter, images, params):
        for one in runs:
            one.add(pixels)
    centroids = [torch.from_numpy(one.centroids()) for one in runs]
    return [(F.normalize(one, dim=1) if settings.unit_centroids else one).numpy() for one in centroids]


def _check_metric(segmenter: Segmenter, settings: Cluster) -> None:
    if segmenter.metric == "euclidean" and settings.unit_centroids:
        raise UserError(
            "params.yaml: cluster.unit_centroids: must be false after training with train.pixel_loss.metric: "
            "euclidean, where features keep their length"
        )


def trained_clusters(segmenter: Path, view: str, *, pixel_k: int) -> list[Float[np.ndarray, "K D"]]:
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
    return [chosen.numpy(), *(other.numpy() for other in clusters.values())]


def _seeds(seed: int) -> list[int]:
    return [faiss_seed(seed, "cluster", attempt) for attempt in range(RUNS)]


def estimate_batch_norm(segmenter: Segmenter, images: ImageSource, params: SimpleNamespace) -> None:
    """Replace the running batch-norm statistics by the mean over batches of clean images (ours).

    Training leaves statistics of augmented views, a third of them of small guidance views. Frozen statistics
    (`train.freeze`) stay as they are.
    """
    order = torch_generator(params.seed, "cluster", "batch norm")
    batches = shuffled(len(images), min(params.cluster.batch_size, len(images)), order)
    shares = [distributed.share(rows) for rows in batches]
    source = track(images.batches(shares), "batch norm", total=len(batches), unit="batch")
    with autocast(images.device, params.precision):
        update_bn((_at_size(image, params.size_px) for image in source), segmenter)


def describe_clusters(
    pixels: Float[np.ndarray, "P D"], runs: list[Float[np.ndarray, "K D"]], metric: str
) -> dict[str, float]:
    """Label-free figures of the first clustering, and how far the second agrees with it."""
    shown = pixels[:: max(1, len(pixels) // AGREEMENT_PIXELS)]
    first, second = (assign(shown, centroids, metric)[0] for centroids in runs)
    assigned, score = assign(pixels, runs[0], metric)
    return {
        "effective_clusters": effective_clusters(assigned),
        "mean_score": float(score.mean()),
        "stability": agreement(first, second),
    }


@torch.no_grad()
def sample_pixel_features(
    segmenter: Segmenter, images: ImageSource, params: SimpleNamespace
) -> Float[np.ndarray, "P D"]:
    """Compute the features of randomly sampled pixels of sampled images, without augmentation (5.1).

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
    batches = list(drawn.split(settings.batch_size))
    taken = []
    shares = [distributed.share(rows) for rows in batches]
    source = track(images.batches(shares), "pixel features", total=len(batches), unit="batch")
    for rows, image in zip(batches, source, strict=True):
        pixels = pixel_features(segmenter, _at_size(image, params.size_px), params.precision)
        chances = torch.rand(len(rows), pixels.per_image, generator=generator)
        places = distributed.share(chances).topk(min(per_image, pixels.per_image)).indices
        chosen = pixels.at(places.to(image.device))
        taken.append(distributed.assemble(chosen, len(rows)).flatten(0, 1).cpu().numpy())
    return np.concatenate(taken)


@torch.no_grad()
def all_pixel_features(
    segmenter: Segmenter, images: ImageSource, params: SimpleNamespace
) -> Iterator[Float[np.ndarray, "P D"]]:
    """Yield the features of every pixel of every image, batch by batch in random order.

    In training mode the forward pass updates the batch-norm running statistics, as PiCIE does.
    """
    order = torch.randperm(len(images), generator=torch_generator(params.seed, "cluster", "order"))
    batches = [
        rows for rows in order.split(params.cluster.batch_size) if len(rows) > 1
    ]  # batch norm needs two images
    shares = [distributed.share(rows) for rows in batches]
    source = track(images.batches(shares), "pixel features", total=len(batches), unit="batch")
    for rows, image in zip(batches, source, strict=True):
        pixels = pixel_features(segmenter, _at_size(image, params.size_px), params.precision)
        yield pixels._replace(feature=distributed.assemble(pixels.feature, len(rows))).all().cpu().numpy()


def _at_size(image: Float[Tensor, "N 3 H W"], size_px: int) -> Float[Tensor, "N 3 S S"]:
    if image.shape[2] == size_px:
        return image
    return resample(image, whole(len(image), image.device), (size_px, size_px))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.cluster", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of packed images from `prepare`")
    parser.add_argument("--segmenter", type=Path, required=True, help="trained segmenter from `train`")
    parser.add_argument("--out", type=Path, required=True, help="output: centroids (.safetensors)")
    parser.add_argument("--metrics", type=Path, required=True, help="output: label-free metrics (.json)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
