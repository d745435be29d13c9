"""Evaluate (5.1): match clusters to classes and score the prediction, or the CRF's by the same matching."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.dataset.store import open_images
from stages.dataset.truth import Truth, read_truth
from stages.imaging.score_maps import chunks, cluster_maps, open_scores
from stages.runtime.artefacts import read_array, write_csv, write_json
from stages.runtime.errors import UserError, run
from stages.runtime.params import load
from stages.runtime.progress import say, track
from stages.scoring.colour_baseline import assign_colour_position, fit_colour_position
from stages.scoring.confusion import Tally, tally
from stages.scoring.matching import match_by_overlap
from stages.scoring.metrics import score
from stages.scoring.tables import confusion_table, headline, per_class_table

Chunk = tuple[slice, np.ndarray]


def main(argv: Sequence[str] | None = None) -> None:
    """Score one partition of the validation images, and beside it colour and position alone if asked for."""
    args = _parse(argv)
    params = load(args.params, "seed", "pixel_k", "evaluate")
    truth = read_truth(args.truth)
    scores = open_scores(args.predictions, len(truth.maps))
    refined = _open_refined(args.refined, truth) if args.refined else None
    counted = _tally(_raw(scores, truth), truth, scores.shape[1])
    cluster_to_class = match_by_overlap(counted.confusion)
    if refined is not None:
        counted = _tally(_stored(refined, scores), truth, scores.shape[1])
    metrics = {args.name: headline(counted, cluster_to_class)}
    if args.images:
        settings = {"restarts": params.evaluate.baseline_restarts, "seed": params.seed}
        baseline = _colour_position(args.images, truth, params.pixel_k, **settings)
        metrics["colour_position"] = headline(baseline, match_by_overlap(baseline.confusion))
    write_json(args.metrics, metrics)
    names, fractions = truth.class_names, score(counted.confusion, cluster_to_class)
    write_csv(args.per_class, per_class_table(names, counted.confusion, cluster_to_class, fractions))
    write_csv(args.confusion, confusion_table(names, counted.confusion, cluster_to_class))
    for name, figures in metrics.items():
        say(name, **figures)
    if not truth.has_labels:
        print("evaluate: the data set has no truth, so these are the label-free figures alone", flush=True)


def _tally(maps: Iterator[Chunk], truth: Truth, num_clusters: int) -> Tally:
    return tally(maps, truth.maps, num_classes=len(truth.class_names), num_clusters=num_clusters)


def _raw(scores: np.ndarray, truth: Truth) -> Iterator[Chunk]:
    """Cluster maps of the predictions at the size of the truth, chunk by chunk."""
    size_px = truth.maps.shape[1]
    for images in track(list(chunks(scores, size_px)), "predictions", unit="chunk"):
        yield images, cluster_maps(scores[images], size_px)


def _stored(refined: np.ndarray, scores: np.ndarray) -> Iterator[Chunk]:
    """Cluster maps that are already at the size of the truth."""
    for images in track(list(chunks(scores, refined.shape[1])), "refined", unit="chunk"):
        yield images, np.asarray(refined[images])


def _colour_position(folder: Path, truth: Truth, num_clusters: int, *, restarts: int, seed: int) -> Tally:
    train, val = open_images(folder, "train"), open_images(folder, "val")
    if val.shape[:3] != truth.maps.shape:
        raise UserError(
            f"{folder / 'val.npy'}: holds images {list(val.shape)}, but the label maps are "
            f"{list(truth.maps.shape)}; run `dvc repro prepare`"
        )
    centroids = fit_colour_position(train, num_clusters, restarts=restarts, seed=seed)
    return _tally(assign_colour_position(val, centroids), truth, num_clusters)


def _open_refined(path: Path, truth: Truth) -> np.ndarray:
    refined = read_array(path, memory_map=True)
    if refined.dtype != np.uint8 or refined.shape != truth.maps.shape:
        raise UserError(
            f"{path}: holds {refined.dtype} {list(refined.shape)}, expected cluster ids uint8 "
            f"{list(truth.maps.shape)} as the label maps; run `dvc repro refine`"
        )
    return refined


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__)
    parser.add_argument("--name", required=True, help="top-level key of the metrics: raw or refined")
    parser.add_argument(
        "--predictions", type=Path, required=True, help=".npy, cosine scores float16 [M, K, h, w]"
    )
    parser.add_argument(
        "--refined", type=Path, help=".npy, cluster ids uint8 [M, S, S]: score these, matched as raw"
    )
    parser.add_argument("--truth", type=Path, required=True, help="folder of label maps and class names")
    parser.add_argument(
        "--images", type=Path, help="folder of packed images: score colour and position alone as well"
    )
    parser.add_argument("--metrics", type=Path, required=True, help=".json to write; fractions in [0, 1]")
    parser.add_argument(
        "--per-class", type=Path, required=True, help=".csv to write; fractions in [0, 1], pixels"
    )
    parser.add_argument(
        "--confusion", type=Path, required=True, help=".csv to write; pixels of actual and predicted"
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
