"""Stage `label`: global k-means of view features gives every view a pseudo-label and a score (4.2.1)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages.clustering.agreement import agreement, effective_clusters
from stages.clustering.kmeans import assign, spherical_kmeans
from stages.clustering.pseudo_labels import agreement_with_order, weaknesses
from stages.runtime.artefacts import read_array, write_json
from stages.runtime.device import choose_device
from stages.runtime.errors import UserError, run
from stages.runtime.fit import check_data_size
from stages.runtime.params import load
from stages.runtime.progress import say
from stages.runtime.seeds import faiss_seed
from stages.runtime.tensors import write_tensors

KEYS = ("seed", "global_k", "label")


def main(argv: Sequence[str] | None = None) -> None:
    """Read embeddings, cluster them twice (the second run shows how stable the first is), write the first."""
    parser = argparse.ArgumentParser(prog="python -m stages.label", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
    parser.add_argument("--embeddings", type=Path, required=True, help="features of all views, of `embed`")
    parser.add_argument(
        "--out", type=Path, required=True, help="centroids, labels and scores to write (.safetensors)"
    )
    parser.add_argument("--metrics", type=Path, required=True, help="label-free figures to write (.json)")
    args = parser.parse_args(argv)

    params = load(args.params, *KEYS)
    embeddings = read_array(args.embeddings, memory_map=True)
    if embeddings.ndim != 3:
        raise UserError(
            f"{args.embeddings}: expected [images, views, features], got {list(embeddings.shape)}"
        )
    num_images, num_views, _ = embeddings.shape
    check_data_size(args.params, num_images)
    views = embeddings.reshape(num_images * num_views, -1)
    fitted = embeddings[:, 0] if params.label.fit_views == "whole" else views
    device = choose_device(load(args.params, "device").device)
    runs = []
    for attempt in range(2):
        centroids = spherical_kmeans(
            fitted,
            params.global_k,
            iterations=params.label.iterations,
            restarts=params.label.restarts,
            seed=faiss_seed(params.seed, "label", attempt),
            device=device,
        )
        runs.append((centroids, *assign(views, centroids)))
    (centroids, pseudo_label, score), (_, second_label, _) = runs

    figures = {
        "effective_clusters": effective_clusters(pseudo_label),
        "mean_score": float(score.mean()),
        "stability": agreement(pseudo_label, second_label),
        "agreement_with_position": agreement(pseudo_label, np.tile(np.arange(num_views), num_images)),
        "agreement_with_order": agreement_with_order(pseudo_label[::num_views], params.global_k),
    }
    say("label", **figures)
    for weakness in weaknesses(figures, params.label.weak):
        say("label", weak=weakness)
    shape = (num_images, num_views)
    tensors = {
        "centroids": torch.from_numpy(centroids),
        "pseudo_label": torch.from_numpy(pseudo_label.reshape(shape)),
        "score": torch.from_numpy(score.reshape(shape)),
    }
    write_tensors(args.out, tensors, {"global_k": params.global_k})
    write_json(args.metrics, {"label": figures})


if __name__ == "__main__":
    run(main)
