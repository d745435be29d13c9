"""Stage `label`: assign every view the nearest cluster center as pseudo-label, and a score (4.2.1)."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from stages.clustering.agreement import agreement
from stages.clustering.kmeans import KMeans
from stages.clustering.usage import effective_clusters
from stages.core.artefacts import read_array, write_metrics
from stages.core.device import choose_device, torch_generator
from stages.core.memory import memory_for
from stages.core.seeds import faiss_seed
from stages.core.tensors import write_tensors
from stages.pseudo_labels.centres import Space, choose_centres, read_heads
from stages.runtime.progress import say, warn
from stages.runtime.script import run, stage_parser
from stages.runtime.start import tell_device
from stages.runtime.watch import Watch
from stages.settings.data_size import check_data_size
from stages.settings.errors import UserError
from stages.settings.params import load
from stages.settings.schema import Label, WeakLabels

KEYS = ("seed", "global_k", "label")


@memory_for("end other programs that use the GPU, lower label.sample_views, or set device: cpu", "label: ")
def main(argv: Sequence[str] | None = None) -> None:
    """Cluster the embeddings twice, measure the agreement of the two runs, and write the first one."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    watch = Watch("label", args.params, KEYS, [args.embeddings, args.backbone])
    embeddings = read_array(args.embeddings, memory_map=True)
    if embeddings.ndim != 3:
        raise UserError(
            f"{args.embeddings}: expected [images, views, features], got {list(embeddings.shape)}"
        )
    num_images, num_views, _ = embeddings.shape
    check_data_size(args.params, num_images)
    heads = read_heads(args.backbone)
    kind = choose_centres(params.label.centres, heads)
    say("label", centres=kind, asked_for=params.label.centres)
    views = embeddings.reshape(num_images * num_views, -1)
    tell_device(device := choose_device(load(args.params, "device").device))
    space = Space(kind, heads, device)
    fitted = space.points(views[_sample(num_images, num_views, params.label, params.seed)])
    kmeans = KMeans.of(params.label, params.global_k)
    runs = [
        space.centres(fitted, kmeans, seed=faiss_seed(params.seed, "label", attempt)) for attempt in range(2)
    ]
    (pseudo_label, score), (second_label, _) = space.assign(views, runs)

    figures = {
        "effective_clusters": effective_clusters(pseudo_label),
        "mean_score": float(score.mean()),
        "stability": agreement(pseudo_label, second_label),
        "agreement_with_position": agreement(pseudo_label, np.tile(np.arange(num_views), num_images)),
        "agreement_with_order": agreement_with_order(pseudo_label[::num_views], params.global_k),
    }
    say("label", **figures)
    for weakness in weaknesses(figures, params.global_k, kind, params.label.weak):
        warn("label", weakness)
    shape = (num_images, num_views)
    tensors = {
        "centroids": runs[0].cpu(),
        "pseudo_label": torch.from_numpy(pseudo_label.reshape(shape)),
        "score": torch.from_numpy(score.reshape(shape)),
    }
    watch.check()
    write_tensors(args.out, tensors, {"global_k": params.global_k, "centres": kind})
    write_metrics(args.metrics, {"label": {"centres": kind, **figures}})


def _sample(num_images: int, num_views: int, settings: Label, seed: int) -> Int[np.ndarray, " S"]:
    """Return the sorted indices of the randomly sampled views that the centers are fitted on."""
    places = np.arange(0, num_images * num_views, num_views if settings.fit_views == "whole" else 1)
    chosen = torch.randperm(len(places), generator=torch_generator(seed, "label", "sample"))
    return places[np.sort(chosen[: settings.sample_views].numpy())]


def agreement_with_order(pseudo_label: Int[np.ndarray, " N"], num_blocks: int) -> float:
    """Measure how strongly pseudo-labels follow the file order: agreement with `num_blocks` even blocks.

    The value is high for video frames, because neighboring frames look alike. It is also high for folders
    sorted by content, where it indicates no problem.
    """
    blocks = np.arange(len(pseudo_label)) * num_blocks // len(pseudo_label)
    return agreement(pseudo_label, blocks)


def weaknesses(
    figures: Mapping[str, float], global_k: int, centres: str, limits: WeakLabels
) -> Iterator[str]:
    """Yield each weakness of the pseudo-labels with its remedies.

    Args:
        figures: stability, agreement_with_position and agreement_with_order (1: perfect, 0: chance), and
            effective_clusters.
        global_k: number of pseudo-labels.
        centres: kind of the centers.
        limits: thresholds of each figure.
    """
    stability, position, order = (
        figures[name] for name in ("stability", "agreement_with_position", "agreement_with_order")
    )
    if stability < limits.stability_below:
        yield f"a second clustering agrees by only {stability:.2f}; pretrain longer, or lower global_k"
    if position > limits.position_above:
        yield (
            f"pseudo-labels follow the position of the view ({position:.2f}), which matters unless whole "
            "images alone guide (select_views.pool: whole); set this, pretrain longer, or lower "
            "train.image_loss.weight"
        )
    if order > limits.order_above:
        yield (
            f"pseudo-labels follow the file order ({order:.2f}), as for video frames; unless the folders are "
            "sorted by content, lower global_k or train.image_loss.weight"
        )
    if (used := figures["effective_clusters"]) < limits.used_below * global_k:
        other = "" if centres == "kmeans" else ", or set label.centres: kmeans"
        yield (
            f"only {used:.1f} of {global_k} pseudo-labels are effectively in use; pretrain longer, or lower "
            f"global_k{other}"
        )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = stage_parser("label", __doc__)
    parser.add_argument("--embeddings", type=Path, required=True, help="features of all views from `embed`")
    parser.add_argument(
        "--backbone",
        type=Path,
        required=True,
        help="pretrained model from `pretrain`; only its heads are used",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="output: centroids, pseudo-labels and scores (.safetensors)"
    )
    parser.add_argument("--metrics", type=Path, required=True, help="output: label-free metrics (.json)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
