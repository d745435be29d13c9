"""Stage `label`: centres of view features give every view a pseudo-label and a score (4.2.1)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from stages.clustering.agreement import agreement, effective_clusters
from stages.clustering.centres import Space, choose_centres
from stages.clustering.kmeans import KMeans
from stages.clustering.pseudo_labels import agreement_with_order, weaknesses
from stages.nets.heads import read_heads
from stages.runtime.artefacts import read_array, write_json
from stages.runtime.device import choose_device
from stages.runtime.errors import UserError, run
from stages.runtime.fit import check_data_size
from stages.runtime.generators import torch_generator
from stages.runtime.params import load
from stages.runtime.progress import say
from stages.runtime.schema import Label
from stages.runtime.seeds import faiss_seed
from stages.runtime.tensors import write_tensors
from stages.runtime.watch import Watch

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
    write_json(args.metrics, {"label": {"centres": kind, **figures}})


def _sample(num_images: int, num_views: int, settings: Label, seed: int) -> Int[np.ndarray, " S"]:
    """Places of the views that centres are found on, in order: as many of all or of whole images as asked."""
    places = np.arange(0, num_images * num_views, num_views if settings.fit_views == "whole" else 1)
    chosen = torch.randperm(len(places), generator=torch_generator(seed, "label", "sample"))
    return places[np.sort(chosen[: settings.sample_views].numpy())]


if __name__ == "__main__":
    run(main)
