"""Stage `cluster`: the final k-means of pixel features over the training images (5.1, Evaluation)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from stages.backbone.batch_norm import split_batch_norms
from stages.clustering.agreement import agreement
from stages.clustering.kmeans import assign
from stages.clustering.usage import effective_clusters
from stages.core import distributed
from stages.core.artefacts import write_metrics
from stages.core.device import place
from stages.core.hashes import file_sha256
from stages.core.images import open_images
from stages.core.memory import enough_memory
from stages.final_clusters.centroids import cluster_all, cluster_sample, trained_clusters
from stages.final_clusters.continuation import keep_numbers
from stages.final_clusters.sampling import estimate_batch_norm, sample_pixel_features
from stages.imaging.batches import ImageSource
from stages.runtime.environment import describe_environment
from stages.runtime.progress import say
from stages.runtime.script import run, stage_parser
from stages.runtime.start import start_stage
from stages.runtime.state import common_fingerprint
from stages.runtime.watch import Watch
from stages.segmenter.network import Segmenter
from stages.segmenter.segmenter_file import load_segmenter, open_earlier, save_final_clusters
from stages.settings.errors import UserError
from stages.settings.params import load
from stages.settings.schema_train import Cluster, Metric

KEYS = ("seed", "size_px", "pixel_k", "precision", "deterministic", "cluster")
AGREEMENT_PIXELS = 20_000  # enough for three digits


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


def _check_metric(segmenter: Segmenter, settings: Cluster) -> None:
    if segmenter.metric == "euclidean" and settings.unit_centroids:
        raise UserError(
            "params.yaml: cluster.unit_centroids: must be false after training with train.pixel_loss.metric: "
            "euclidean, where features keep their length"
        )


def describe_clusters(
    pixels: Float[Tensor, "P D"], runs: list[Float[Tensor, "K D"]], metric: Metric
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
    parser = stage_parser("cluster", __doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of packed images from `prepare`")
    parser.add_argument("--segmenter", type=Path, required=True, help="trained segmenter from `train`")
    parser.add_argument("--out", type=Path, required=True, help="output: centroids (.safetensors)")
    parser.add_argument("--metrics", type=Path, required=True, help="output: label-free metrics (.json)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
