"""Stage `cluster`: the final k-means of pixel features over the training images (5.1, Evaluation)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from stages.clustering.agreement import agreement, effective_clusters
from stages.clustering.kmeans import assign
from stages.dataset.store import open_images
from stages.imaging.source import ImageSource
from stages.nets.batch_norm import split_batch_norms
from stages.runtime import distributed
from stages.runtime.artefacts import write_json
from stages.runtime.device import choose_device, place
from stages.runtime.environment import describe_environment
from stages.runtime.errors import run
from stages.runtime.launch import launch
from stages.runtime.params import load
from stages.runtime.progress import say
from stages.runtime.tensors import write_tensors
from stages.runtime.watch import Watch
from stages.segmentation.compat import cluster_settings
from stages.segmentation.final_clusters import cluster_all, cluster_sample, trained_clusters
from stages.segmentation.inference import sample_pixel_features
from stages.segmentation.network import load_segmenter

KEYS = ("compat", "seed", "size_px", "pixel_k", "precision", "cluster")
AGREEMENT_PIXELS = 20_000  # the figure's third digit needs no more


def main(argv: Sequence[str] | None = None) -> None:
    """Read images and segmenter, cluster a sample of pixels twice, write the first run's centroids."""
    parser = argparse.ArgumentParser(prog="python -m stages.cluster", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of packed images, of `prepare`")
    parser.add_argument("--segmenter", type=Path, required=True, help="trained segmenter, of `train`")
    parser.add_argument("--out", type=Path, required=True, help="centroids to write (.safetensors)")
    parser.add_argument("--metrics", type=Path, required=True, help="label-free figures to write (.json)")
    args = parser.parse_args(argv)

    params = load(args.params, *KEYS)
    watch = Watch("cluster", args.params, KEYS, [args.images, args.segmenter])
    settings = cluster_settings(params.cluster, params.compat)
    segmenter, _ = load_segmenter(args.segmenter)
    neutral = load(args.params, "device", "runtime")
    arguments = sys.argv[1:] if argv is None else argv
    if launch("stages.cluster", arguments, neutral.runtime.nproc, neutral.device):
        return
    device = distributed.join(choose_device(neutral.device))
    split_batch_norms(segmenter, 1)
    place(segmenter, device).train(settings.batch_norm == "batch")
    images = ImageSource(open_images(args.images, "train"), device)
    pixels = sample_pixel_features(
        segmenter,
        images,
        size_px=params.size_px,
        num_images=settings.sample_images,
        num_pixels=settings.sample_pixels,
        batch_size=settings.batch_size,
        seed=params.seed,
        precision=params.precision,
    )
    if settings.centroids != "fresh":
        runs = trained_clusters(args.segmenter, settings.centroids, pixel_k=params.pixel_k)
    elif settings.kmeans == "sample":
        runs = cluster_sample(pixels, settings, pixel_k=params.pixel_k, seed=params.seed, device=device)
    else:
        runs = cluster_all(
            segmenter,
            images,
            settings,
            pixel_k=params.pixel_k,
            size_px=params.size_px,
            seed=params.seed,
            precision=params.precision,
        )
    shown = pixels[:: max(1, len(pixels) // AGREEMENT_PIXELS)]
    first, second = (assign(shown, centroids)[0] for centroids in runs)
    assigned, score = assign(pixels, runs[0])
    figures = {
        "effective_clusters": effective_clusters(assigned),
        "mean_score": float(score.mean()),
        "stability": agreement(first, second),
    }
    say("cluster", **figures)
    if distributed.is_leader():
        watch.check()
        write_tensors(args.out, {"centroids": torch.from_numpy(runs[0])}, {"pixel_k": params.pixel_k})
        write_json(args.metrics, {"cluster": {**figures, "environment": describe_environment(device)}})
    distributed.leave()


if __name__ == "__main__":
    run(main)
