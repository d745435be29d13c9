"""Stage `label`: centres of view features give every view a pseudo-label and a score (4.2.1)."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from stages.clustering.agreement import agreement, effective_clusters
from stages.clustering.kmeans import KMeans
from stages.core.artefacts import read_array, write_metrics
from stages.core.device import choose_device, torch_generator
from stages.core.seeds import faiss_seed
from stages.core.tensors import write_tensors
from stages.pseudo_labels.centres import Space, choose_centres, read_heads
from stages.runtime.progress import say
from stages.runtime.script import run
from stages.runtime.watch import Watch
from stages.settings.errors import UserError
from stages.settings.params import check_data_size, load
from stages.settings.schema import Label, WeakLabels

KEYS = ("seed", "global_k", "label")


def main(argv: Sequence[str] | None = None) -> None:
    """Read embeddings, find centres twice (the second run shows how stable the first is), write the first."""
    parser = argparse.ArgumentParser(prog="python -m stages.label", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
    parser.add_argument("--embeddings", type=Path, required=True, help="features of all views, of `embed`")
    parser.add_argument(
        "--backbone", type=Path, required=True, help="pretrained model, of `pretrain`; its heads are used"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="centroids, labels and scores to write (.safetensors)"
    )
    parser.add_argument("--metrics", type=Path, required=True, help="label-free figures to write (.json)")
    args = parser.parse_args(argv)

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
    device = choose_device(load(args.params, "device").device)
    space = Space(kind, heads, device)
    fitted = space.points(views[_sample(num_images, num_views, params.label, params.seed)])
    kmeans = KMeans.of(params.label, params.global_k, device)
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
    for weakness in weaknesses(figures, params.global_k, params.label.weak):
        say("label", weak=weakness)
    shape = (num_images, num_views)
    tensors = {
        "centroids": torch.from_numpy(runs[0]),
        "pseudo_label": torch.from_numpy(pseudo_label.reshape(shape)),
        "score": torch.from_numpy(score.reshape(shape)),
    }
    watch.check()
    write_tensors(args.out, tensors, {"global_k": params.global_k, "centres": kind})
    write_metrics(args.metrics, {"label": {"centres": kind, **figures}})


def _sample(num_images: int, num_views: int, settings: Label, seed: int) -> Int[np.ndarray, " S"]:
    """Places of the views that centres are found on, in order: as many of all or of whole images as asked."""
    places = np.arange(0, num_images * num_views, num_views if settings.fit_views == "whole" else 1)
    chosen = torch.randperm(len(places), generator=torch_generator(seed, "label", "sample"))
    return places[np.sort(chosen[: settings.sample_views].numpy())]


def agreement_with_order(pseudo_label: Int[np.ndarray, " N"], num_blocks: int) -> float:
    """How far labels of images in file order follow that order: agreement with as many even blocks of it.

    High for frames of one video, whose neighbours look alike whatever they show; and for folders that are
    sorted by content, where it is no fault.
    """
    blocks = np.arange(len(pseudo_label)) * num_blocks // len(pseudo_label)
    return agreement(pseudo_label, blocks)


def weaknesses(figures: Mapping[str, float], global_k: int, limits: WeakLabels) -> Iterator[str]:
    """What is wrong with the pseudo-labels, each with what helps.

    Args:
        figures: stability, agreement_with_position and agreement_with_order, each 1 at most, 0 for chance;
            effective_clusters.
        global_k: number of pseudo-labels.
        limits: from where on a figure is called weak.
    """
    stability, position, order = (
        figures[name] for name in ("stability", "agreement_with_position", "agreement_with_order")
    )
    if stability < limits.stability_below:
        yield f"a second clustering agrees by {stability:.2f} only: pretrain longer, or lower global_k"
    if position > limits.position_above:
        yield (
            f"they follow the view's place in the image by {position:.2f}: pretrain longer, set "
            "select_views.pool: whole, or lower train.image_loss.weight"
        )
    if order > limits.order_above:
        yield (
            f"they follow the order of the files by {order:.2f}, as frames of a video do: unless folders are "
            "sorted by content, lower global_k or train.image_loss.weight"
        )
    if (used := figures["effective_clusters"]) < limits.used_below * global_k:
        yield (
            f"the views fall into few of them, as if {used:.1f} of {global_k} were in use: pretrain longer, "
            "lower global_k, or set label.centres: kmeans"
        )


if __name__ == "__main__":
    run(main)
