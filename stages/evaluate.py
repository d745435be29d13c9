"""Evaluate (5.1): match clusters to classes and score the prediction, or the CRF's by the same matching.

With --confusion in place of --predictions it scores a stored confusion matrix, so that a published number
can be checked: a .npy array or a .csv of counts, a line for each class (the truth) and a column for each
cluster, with or without names in the first line and column; or the table that --confusion-table writes.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.core.artefacts import read_array, write_metrics
from stages.dataset.truth import Truth, read_truth
from stages.postprocessing.score_maps import chunks, cluster_maps, open_scores
from stages.runtime.progress import say, track
from stages.runtime.script import run
from stages.runtime.watch import Watch
from stages.scoring.colour_baseline import tally_colour_position
from stages.scoring.confusion import Tally, tally, truth_image_share
from stages.scoring.metrics import match_by_overlap
from stages.scoring.outputs import Counted, headline, write_outputs
from stages.scoring.stored import read_counted
from stages.settings.errors import UserError
from stages.settings.params import load

KEYS = ("seed", "pixel_k", "evaluate")
SCORES, LABEL_FREE = ("accuracy", "miou"), ("effective_clusters", "image_share")  # the headline
Chunk = tuple[slice, np.ndarray]
STAGE_FLAGS = ("truth", "metrics", "readings", "readings_table", "per_class", "confusion_table")


def main(argv: Sequence[str] | None = None) -> None:
    """Score one partition of the validation images, and beside it colour and position alone if asked for."""
    args = _parse(argv)
    if args.confusion:
        _rescore(args)
        return
    params = load(args.params, *KEYS)
    inputs = (args.predictions, args.truth, args.refined, args.images)
    watch = Watch("evaluate", args.params, KEYS, [path for path in inputs if path])
    truth = read_truth(args.truth)
    scores = open_scores(args.predictions, len(truth.maps))
    refined = _open_refined(args.refined, truth) if args.refined else None
    raw = counted = _tally(_raw(scores, truth), truth, scores.shape[1])
    if refined is not None:
        counted = _tally(_labels(refined, scores), truth, scores.shape[1])
    metrics = {args.name: headline(counted, match_by_overlap(raw.confusion))}
    if args.images:
        settings = {"restarts": params.evaluate.baseline_restarts, "seed": params.seed}
        baseline = tally_colour_position(args.images, truth, params.pixel_k, **settings)
        metrics["colour_position"] = headline(baseline, match_by_overlap(baseline.confusion))
        if (share := truth_image_share(truth.maps, len(truth.class_names))) is not None:
            metrics["truth"] = {"image_share": share}
    watch.check()
    shown = SCORES if truth.has_labels else LABEL_FREE
    write_metrics(args.metrics, metrics, {args.name: shown})
    for name, figures in metrics.items():
        say(name, **figures)
    _write(args, Counted(counted.confusion, raw.confusion, truth.class_names, truth.class_kinds))
    if not truth.has_labels:
        print("evaluate: the data set has no truth, so these are the label-free figures alone", flush=True)


def _rescore(args: argparse.Namespace) -> None:
    """Score a stored confusion matrix; write what is asked for."""
    counted = read_counted(args.confusion, args.matched_on, args.classes, transposed=args.transposed)
    if args.metrics:
        whole = Tally(counted.confusion, counted.confusion.sum(0))
        metrics = {args.name: headline(whole, counted.cluster_to_class)}
        write_metrics(args.metrics, metrics, {args.name: SCORES})
    _write(args, counted)


def _write(args: argparse.Namespace, counted: Counted) -> None:
    write_outputs(
        counted,
        args.name,
        readings=args.readings,
        readings_table=args.readings_table,
        per_class=args.per_class,
        confusion_table_path=args.confusion_table,
    )


def _tally(maps: Iterator[Chunk], truth: Truth, num_clusters: int) -> Tally:
    return tally(maps, truth.maps, num_classes=len(truth.class_names), num_clusters=num_clusters)


def _raw(scores: np.ndarray, truth: Truth) -> Iterator[Chunk]:
    """Cluster maps of the predictions at the size of the truth, chunk by chunk."""
    size_px = truth.maps.shape[1]
    for images in track(list(chunks(scores, size_px)), "predictions", unit="chunk"):
        yield images, cluster_maps(scores[images], size_px)


def _labels(refined: np.ndarray, scores: np.ndarray) -> Iterator[Chunk]:
    """Cluster maps that are already at the size of the truth."""
    for images in track(list(chunks(scores, refined.shape[1])), "refined", unit="chunk"):
        yield images, np.asarray(refined[images])


def _open_refined(path: Path, truth: Truth) -> np.ndarray:
    refined = read_array(path, memory_map=True)
    if refined.dtype != np.uint8 or refined.shape != truth.maps.shape:
        raise UserError(
            f"{path}: holds {refined.dtype} {list(refined.shape)}, expected cluster ids uint8 "
            f"{list(truth.maps.shape)} as the label maps; run `dvc repro refine`"
        )
    return refined


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", help="top-level key of the metrics: raw, refined, or confusion by default")
    scored = parser.add_mutually_exclusive_group(required=True)
    scored.add_argument("--predictions", type=Path, help=".npy, cosine scores float16 [M, K, h, w]")
    scored.add_argument(
        "--confusion", type=Path, help=".npy or .csv, pixels of each class and cluster: score it"
    )
    predictions = parser.add_argument_group("with --predictions")
    predictions.add_argument(
        "--refined", type=Path, help=".npy, cluster ids uint8 [M, S, S]: score these, matched as raw"
    )
    predictions.add_argument("--truth", type=Path, help="folder of label maps and class names")
    predictions.add_argument(
        "--images", type=Path, help="folder of packed images: score colour and position alone as well"
    )
    predictions.add_argument("--params", type=Path, default=Path("params.yaml"))
    confusion = parser.add_argument_group("with --confusion")
    confusion.add_argument("--classes", type=Path, help=".csv, columns id, name, kind: thing, stuff or empty")
    confusion.add_argument(
        "--matched-on",
        type=Path,
        help="the matrix that decides the matching, as the CRF's is scored by raw's",
    )
    confusion.add_argument(
        "--transposed", action="store_true", help="lines are clusters, columns are classes"
    )
    written = parser.add_argument_group("written; fractions in [0, 1]; with --confusion all are optional")
    written.add_argument("--metrics", type=Path, help=".json, the headline figures")
    written.add_argument("--readings", type=Path, help=".json, things and stuff in every reading")
    written.add_argument("--readings-table", type=Path, help=".csv, the same as a table")
    written.add_argument("--per-class", type=Path, help=".csv, a row for each class")
    written.add_argument("--confusion-table", type=Path, help=".csv, pixels of actual and predicted")
    args = parser.parse_args(argv)
    missing = [flag for flag in STAGE_FLAGS if args.predictions and getattr(args, flag) is None]
    if missing:
        parser.error("--predictions needs --" + ", --".join(missing).replace("_", "-"))
    args.name = args.name or "confusion"
    return args


if __name__ == "__main__":
    run(main)
