"""Stage `cluster`: the final k-means of pixel features over the training images (5.1, Evaluation)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stages.backbone.batch_norm import split_batch_norms
from stages.clustering.agreement import agreement
from stages.clustering.continuation import continue_clusters, count_shared
from stages.clustering.kmeans import KMeans, MiniBatchKMeans, assign
from stages.clustering.usage import effective_clusters
from stages.core import distributed
from stages.core.artefacts import write_metrics
from stages.core.device import place, torch_generator
from stages.core.hashes import file_sha256
from stages.core.images import open_images
from stages.core.memory import enough_memory
from stages.core.seeds import faiss_seed
from stages.imaging.batches import ImageSource
from stages.runtime.environment import describe_environment
from stages.runtime.progress import say
from stages.runtime.script import run
from stages.runtime.start import start_stage
from stages.runtime.state import common_fingerprint
from stages.runtime.watch import Watch
from stages.segmenter.network import Segmenter
from stages.segmenter.sampling import (
    all_pixel_features,
    batches_of,
    cluster_maps,
    estimate_batch_norm,
    sample_pixel_features,
)
from stages.segmenter.segmenter_file import (
    Earlier,
    load_segmenter,
    load_trained_clusters,
    open_earlier,
    save_final_clusters,
)
from stages.settings.errors import UserError
from stages.settings.params import load
from stages.settings.schema_train import Cluster

KEYS = ("seed", "size_px", "pixel_k", "precision", "deterministic", "cluster")
RUNS = 2  # the second run measures the stability of the first
AGREEMENT_PIXELS = 20_000  # enough for three digits
CONTINUED_IMAGES = 256  # both clusterings are compared on


@enough_memory("cluster.batch_size")
def main(argv: Sequence[str] | None = None) -> None:
    """Cluster the pixel features of the images twice and write the centroids of the first run."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    settings = params.cluster
    earlier = open_earlier(settings)
    inputs = [args.images, args.segmenter, *([] if earlier is None else earlier.files)]
    watch = Watch("cluster", args.params, KEYS, inputs)
    segmenter, _ = load_segmenter(args.segmenter)
    _check_metric(segmenter, settings)
    neutral = load(args.params, "device", "runtime")
    device = start_stage("cluster", argv, neutral, params)
    if device is None:
        return
    if distributed.world_size() > 1:
        common_fingerprint(watch)
    split_batch_norms(segmenter, 1)
    images = ImageSource(open_images(args.images), device)
    place(segmenter, device)
    say("cluster", images=len(images), clusters=params.pixel_k)
    if settings.batch_norm == "fresh" and not segmenter.has_frozen_statistics:
        estimate_batch_norm(segmenter, images, params)
    segmenter.train(settings.batch_norm == "batch")
    pixels = None
    if settings.centroids != "fresh":
        trained = trained_clusters(args.segmenter, settings.centroids, pixel_k=params.pixel_k)
        runs = [one.to(device) for one in trained]
    elif settings.kmeans == "minibatch":
        runs = cluster_all(segmenter, images, params)
    else:
        pixels = sample_pixel_features(segmenter, images, params)
        runs = cluster_sample(pixels, settings, pixel_k=params.pixel_k, seed=params.seed)
    if pixels is None:
        pixels = sample_pixel_features(segmenter.eval(), images, params)
    figures = describe_clusters(pixels, runs, segmenter.metric)
    say("cluster", **figures)
    if distributed.is_leader():
        centroids, about = runs[0].cpu(), dict[str, Any]()
        told: dict[str, Any] = {**figures, "environment": describe_environment(device)}
        if earlier is not None:
            segmenter.eval()
            centroids, about, told["numbers"] = keep_numbers(earlier, segmenter, centroids, images, params)
        made_for = file_sha256(args.segmenter)
        watch.check()
        moved = None if settings.batch_norm == "running" else segmenter
        save_final_clusters(args.out, centroids, moved, about, made_for=made_for)
        write_metrics(args.metrics, {"cluster": told})
    distributed.leave()


def keep_numbers(
    earlier: Earlier,
    segmenter: Segmenter,
    centroids: Float[Tensor, "K D"],
    images: ImageSource,
    params: SimpleNamespace,
) -> tuple[Float[Tensor, "K D"], dict[str, Any], dict[str, Any]]:
    """Number the clusters so that those that go on from an earlier run keep their numbers (ours).

    Both networks assign the pixels of the same training images.

    Returns:
        The centroids in the new order; metadata for their file; figures on what goes on, is new, or is gone.
    """
    before, now = (
        cluster_maps(network, found, images, count=CONTINUED_IMAGES, size_px=size_px, params=params)
        for network, found, size_px in (
            (place(earlier.segmenter, images.device), earlier.centroids, earlier.size_px),
            (segmenter, centroids, params.size_px),
        )
    )
    shared = count_shared(before, now, len(earlier.centroids), len(centroids))
    found = continue_clusters(shared)
    say("cluster", continued=len(found.kept), new=list(found.new), gone=list(found.gone), moved=found.moved)
    ordered = torch.empty_like(centroids)
    ordered[torch.from_numpy(found.number)] = centroids
    figures = {
        "continued": [{"cluster": cluster, "iou": iou} for cluster, iou in found.kept.items()],
        "new": list(found.new),
        "gone": list(found.gone),
        "moved": [{"from": old, "to": new} for old, new in found.moved.items()],
    }
    return ordered, earlier.about_continuing(found.new), figures


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


def cluster_all(
    segmenter: Segmenter, images: ImageSource, params: SimpleNamespace
) -> list[Float[Tensor, "K D"]]:
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


def _check_metric(segmenter: Segmenter, settings: Cluster) -> None:
    if segmenter.metric == "euclidean" and settings.unit_centroids:
        raise UserError(
            "params.yaml: cluster.unit_centroids: must be false after training with train.pixel_loss.metric: "
            "euclidean, where features keep their length"
        )


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


def describe_clusters(
    pixels: Float[Tensor, "P D"], runs: list[Float[Tensor, "K D"]], metric: str
) -> dict[str, float]:
    """Label-free figures of the first clustering, and how far the second agrees with it."""
    shown = pixels[:: max(1, len(pixels) // AGREEMENT_PIXELS)]
    first, second = (assign(shown, centroids, metric)[0].cpu().numpy() for centroids in runs)
    assigned, score = assign(pixels, runs[0], metric)
    return {
        "effective_clusters": effective_clusters(assigned.cpu().numpy()),
        "mean_score": float(score.mean()),
        "stability": agreement(first, second),
    }


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
