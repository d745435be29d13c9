"""Stage `evaluate`: match clusters to classes and score the prediction or its CRF refinement (5.1).

The refinement is scored with the matching of the prediction.

With --confusion instead of --predictions, score a stored confusion matrix, for example to check a published
result. Formats: a .npy array or a .csv file of pixel counts with one row per class (ground truth) and one
column per cluster, with or without a header row and column; or the file that --confusion-table writes.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.core.artefacts import read_array, write_metrics
from stages.dataset.truth import Truth, read_truth
from stages.postprocessing.score_maps import chunks, cluster_maps, open_scores
from stages.runtime.progress import say, tell, track
from stages.runtime.script import run, stage_parser
from stages.runtime.watch import Watch
from stages.scoring.colour_baseline import tally_colour_position
from stages.scoring.confusion import Counted, Tally, tally, truth_figures
from stages.scoring.metrics import match_by_overlap
from stages.scoring.outputs import headline, write_outputs
from stages.scoring.readings import Matched
from stages.scoring.stored import read_counted
from stages.settings.errors import UserError
from stages.settings.params import load

KEYS = ("seed", "pixel_k", "evaluate")
SCORES, LABEL_FREE = ("accuracy", "miou"), ("effective_clusters", "image_share")  # headline metrics
Chunk = tuple[slice, np.ndarray]
STAGE_FLAGS = ("truth", "metrics", "readings", "readings_table", "per_class", "confusion_table")


def main(argv: Sequence[str] | None = None) -> None:
    """Score one clustering of the validation images and, with --images, the color-and-position baseline."""
    args = _parse(argv)
    if args.confusion:
        _rescore(args)
        return
    params = load(args.params, *KEYS)
    watch = Watch("evaluate", args.params, KEYS, [args.predictions, args.truth, args.refined, args.images])
    truth = read_truth(args.truth)
    scores = open_scores(args.predictions, len(truth.maps))
    refined = _open_refined(args.refined, truth) if args.refined else None
    maps = _raw(scores, truth) if refined is None else _labels(refined, scores)
    raw = whole = _tally(maps, truth, scores.shape[1])
    if refined is not None and truth.has_labels:  # matched as the prediction is
        raw = _tally(_raw(scores, truth), truth, scores.shape[1])
    counted = Counted(whole.confusion, raw.confusion, truth.class_names, truth.class_kinds)
    one_to_one = Matched(counted, match_by_overlap)
    metrics = {args.name: headline(whole, one_to_one.cluster_to_class)}
    if args.images:
        baseline = tally_colour_position(
            args.images, truth, params.evaluate, num_clusters=params.pixel_k, seed=params.seed
        )
        metrics["colour_position"] = headline(baseline, match_by_overlap(baseline.confusion))
        if of_truth := truth_figures(truth.maps, len(truth.class_names)):
            metrics["truth"] = {**of_truth}
    watch.check()
    shown = SCORES if truth.has_labels else LABEL_FREE
    write_metrics(args.metrics, metrics, {args.name: shown})
    for name, figures in metrics.items():
        say(name, **figures)
    _write(args, one_to_one)
    if not truth.has_labels:
        tell("evaluate: the data set has no label maps; only label-free metrics are reported")


def _rescore(args: argparse.Namespace) -> None:
    """Score a stored confusion matrix and write the requested outputs."""
    counted = read_counted(args.confusion, args.matched_on, args.classes, transposed=args.transposed)
    one_to_one = Matched(counted, match_by_overlap)
    if args.metrics:
        whole = Tally(counted.confusion, counted.confusion.sum(0))
        metrics = {args.name: headline(whole, one_to_one.cluster_to_class)}
        write_metrics(args.metrics, metrics, {args.name: SCORES})
    _write(args, one_to_one)


def _write(args: argparse.Namespace, one_to_one: Matched) -> None:
    write_outputs(
        one_to_one,
        args.name,
        readings=args.readings,
        readings_table=args.readings_table,
        per_class=args.per_class,
        confusion_table_path=args.confusion_table,
    )


def _tally(maps: Iterator[Chunk], truth: Truth, num_clusters: int) -> Tally:
    return tally(maps, truth.maps, num_classes=len(truth.class_names), num_clusters=num_clusters)


def _raw(scores: np.ndarray, truth: Truth) -> Iterator[Chunk]:
    """Yield the cluster maps of the predictions at label-map resolution, chunk by chunk."""
    size_px = truth.maps.shape[1]
    for images in track(list(chunks(scores, size_px)), "predictions", unit="chunk"):
        yield images, cluster_maps(scores[images], size_px)


def _labels(refined: np.ndarray, scores: np.ndarray) -> Iterator[Chunk]:
    """Yield the refined cluster maps, which already have label-map resolution."""
    for images in track(list(chunks(scores, refined.shape[1])), "refined", unit="chunk"):
        yield images, np.asarray(refined[images])


def _open_refined(path: Path, truth: Truth) -> np.ndarray:
    refined = read_array(path, memory_map=True)
    if refined.dtype != np.uint8 or refined.shape != truth.maps.shape:
        raise UserError(
            f"{path}: holds {refined.dtype} {list(refined.shape)}, expected cluster ids uint8 "
            f"{list(truth.maps.shape)} like the label maps; run `dvc repro refine`"
        )
    return refined


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = stage_parser("evaluate", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--name", help="top-level key of the metrics, such as raw or refined (default: confusion)"
    )
    scored = parser.add_mutually_exclusive_group(required=True)
    scored.add_argument("--predictions", type=Path, help="scores float16 [M, K, h, w] (.npy)")
    scored.add_argument(
        "--confusion", type=Path, help="confusion matrix of pixel counts to score (.npy or .csv)"
    )
    predictions = parser.add_argument_group("with --predictions")
    predictions.add_argument(
        "--refined",
        type=Path,
        help="refined cluster ids uint8 [M, S, S] to score with the matching of --predictions (.npy)",
    )
    predictions.add_argument("--truth", type=Path, help="folder of label maps and class names")
    predictions.add_argument(
        "--images", type=Path, help="folder of packed images; also score the color-and-position baseline"
    )
    confusion = parser.add_argument_group("with --confusion")
    confusion.add_argument(
        "--classes", type=Path, help="class table: id, name, kind (thing, stuff or empty) (.csv)"
    )
    confusion.add_argument(
        "--matched-on",
        type=Path,
        help="confusion matrix that determines the matching (default: the scored one)",
    )
    confusion.add_argument(
        "--transposed",
        action="store_true",
        help="rows are clusters and columns are classes, in all matrices that are given",
    )
    written = parser.add_argument_group("outputs (fractions in [0, 1]; all optional with --confusion)")
    written.add_argument("--metrics", type=Path, help="headline metrics (.json)")
    written.add_argument("--readings", type=Path, help="scores of things and stuff in every reading (.json)")
    written.add_argument("--readings-table", type=Path, help="the same scores as a table (.csv)")
    written.add_argument("--per-class", type=Path, help="scores of each class (.csv)")
    written.add_argument("--confusion-table", type=Path, help="pixel counts of each class and cluster (.csv)")
    args = parser.parse_args(argv)
    missing = [flag for flag in STAGE_FLAGS if args.predictions and getattr(args, flag) is None]
    if missing:
        parser.error("--predictions needs --" + ", --".join(missing).replace("_", "-"))
    args.name = args.name or "confusion"
    return args


if __name__ == "__main__":
    run(main)
