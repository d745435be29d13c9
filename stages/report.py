"""Stage `report`: one page of scores, segmentations, clusters and training curves (Figures 1, 5 to 7)."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core.artefacts import atomic_folder, read_array, read_csv, read_metrics
from stages.core.images import open_images, read_index
from stages.core.tensors import read_tensors
from stages.dataset.truth import Truth, read_truth
from stages.postprocessing.score_maps import cluster_maps, open_scores
from stages.pseudo_labels.pyramid import view_boxes
from stages.reporting.curves import draw_histories
from stages.reporting.legend import Legend, read_legend
from stages.reporting.names import Names
from stages.reporting.page import (
    class_bars,
    data_tables,
    label_shares,
    reading_table,
    render,
    score_shares,
    score_table,
    share_bars,
)
from stages.reporting.palette import colourise
from stages.reporting.pictures import Row, draw_exemplars, exemplars, panel, save
from stages.runtime.progress import say
from stages.runtime.script import run
from stages.runtime.watch import Watch
from stages.settings.errors import raise_faults
from stages.settings.params import load

KEYS = ("crop_ratio", "report")
TILE_PX, COLUMNS = 128, 8  # of segmentation.png
README_TILE_PX, README_COLUMNS = 112, 6  # of panels.png
INPUTS = {
    "images": "folder of the packed images of both splits from `prepare`",
    "truth": "folder of label maps and class names from `prepare`",
    "data": "data set summary from `prepare` (.json)",
    "labels": "pseudo-label and score of every view from `label` (.safetensors)",
    "views": "pseudo-label of every kept view, int32 [N, 6], from `select_views` (.npy)",
    "predictions": "cosine scores float16 [M, K, h, w] from `predict` (.npy)",
    "refined": "cluster ids after the CRF, uint8 [M, S, S], from `refine` (.npy)",
    "pretrain-history": "metrics of each epoch of `pretrain` (.csv)",
    "train-history": "metrics of each epoch of `train` (.csv)",
    "raw": "scores of the prediction (.json)",
    "refined-scores": "scores after the CRF (.json)",
    "raw-readings": "scores of things and stuff in every reading, for the prediction (.csv)",
    "refined-readings": "the same scores after the CRF (.csv)",
    "per-class": "scores of each class and its matched cluster (.csv)",
}


@dataclass(frozen=True)
class Inputs:
    """All inputs of the page; large arrays are memory maps."""

    train: np.ndarray
    val: np.ndarray
    sources: pd.Series
    truth: Truth
    kept_views: np.ndarray
    view_score: np.ndarray
    predictions: np.ndarray
    refined: np.ndarray
    data: dict[str, Any]
    metrics: dict[str, Any]
    readings: dict[str, pd.DataFrame]
    per_class: pd.DataFrame
    histories: dict[str, pd.DataFrame]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page and its images."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    watch = Watch("report", args.params, KEYS, [getattr(args, name.replace("-", "_")) for name in INPUTS])
    inputs = _read(args)
    raise_faults(_faults(args, inputs))
    num_clusters = inputs.predictions.shape[1]
    legend = read_legend(inputs.truth.class_names, inputs.per_class, num_clusters, Names())
    shares = score_shares(inputs.predictions), label_shares(inputs.refined, num_clusters)
    shown = np.unique(np.linspace(0, len(inputs.val) - 1, params.report.num_images).round().astype(int))
    columns = params.report.views_per_cluster
    gallery = exemplars(
        inputs.kept_views,
        inputs.view_score,
        num_clusters=params.report.num_clusters,
        views_per_cluster=columns,
    )
    with atomic_folder(args.out) as folder:
        _draw_segmentation(folder, inputs, legend, shown)
        boxes = np.asarray(view_boxes(params.crop_ratio))
        draw_exemplars(gallery, inputs.train, boxes, folder, columns=columns)
        page = render(
            has_truth=inputs.truth.has_labels,
            num_train=len(inputs.train),
            num_val=len(inputs.val),
            num_clusters=num_clusters,
            data=data_tables(inputs.data),
            scores=score_table(inputs.metrics),
            readings=reading_table(inputs.readings),
            sources=inputs.sources[shown].tolist(),
            legend=legend.entries(),
            class_bars=class_bars(legend, inputs.per_class),
            share_bars=share_bars(legend, *shares),
            gallery=gallery,
            histories=draw_histories(inputs.histories, folder),
        )
        (folder / "index.html").write_text(page, encoding="utf-8")
        watch.check()
    say("report", images=len(shown), pseudo_labels=len(gallery), page=args.out / "index.html")


def _draw_segmentation(folder: Path, inputs: Inputs, legend: Legend, shown: np.ndarray) -> None:
    """Draw segmentation.png for the page and the smaller panels.png for a README."""
    predicted = cluster_maps(inputs.predictions[shown], inputs.val.shape[1])
    rows = [
        Row("image", inputs.val[shown], is_labels=False),
        Row("prediction", colourise(predicted, legend.cluster_colours), is_labels=True),
        Row("with CRF", colourise(inputs.refined[shown], legend.cluster_colours), is_labels=True),
    ]
    if inputs.truth.has_labels:
        truth = colourise(inputs.truth.maps[shown], legend.class_colours)
        rows.insert(1, Row("truth", truth, is_labels=True))
    save(panel(rows, tile_px=TILE_PX, columns=COLUMNS), folder / "segmentation.png")
    first = [row._replace(tiles=row.tiles[:README_COLUMNS]) for row in rows]
    save(panel(first, tile_px=README_TILE_PX, columns=README_COLUMNS), folder / "panels.png")


def _read(args: argparse.Namespace) -> Inputs:
    val = open_images(args.images / "val")
    tensors, _ = read_tensors(args.labels)
    return Inputs(
        train=open_images(args.images / "train"),
        val=val,
        sources=read_index(args.images / "val")["source"],
        truth=read_truth(args.truth),
        kept_views=read_array(args.views),
        view_score=tensors["score"].numpy() if "score" in tensors else np.empty(0),
        predictions=open_scores(args.predictions, len(val)),
        refined=read_array(args.refined, memory_map=True),
        data=read_metrics(args.data)["prepare"],
        metrics={**read_metrics(args.raw), **read_metrics(args.refined_scores)},
        readings={"raw": read_csv(args.raw_readings), "refined": read_csv(args.refined_readings)},
        per_class=read_csv(args.per_class),
        histories={"pretrain": read_csv(args.pretrain_history), "train": read_csv(args.train_history)},
    )


def _faults(args: argparse.Namespace, inputs: Inputs) -> Iterator[str]:
    """Yield one line for each mismatch between the inputs."""
    expected = {
        args.truth / "val.npy": (inputs.truth.maps.shape, inputs.val.shape[:3]),
        args.refined: (inputs.refined.shape, inputs.val.shape[:3]),
        args.views: (inputs.kept_views.shape, (len(inputs.train), 6)),
        args.labels: (inputs.view_score.shape, (len(inputs.train), 6)),
    }
    for path, (found, wanted) in expected.items():
        if found != wanted:
            yield f"{path}: has shape {list(found)}, but the images require {list(wanted)}; run `dvc repro`"
    largest = int(np.max(inputs.refined, initial=0))
    if largest >= inputs.predictions.shape[1]:
        count = inputs.predictions.shape[1]
        yield (
            f"{args.refined}: has cluster id {largest}, but there are {count} clusters; "
            "run `dvc repro refine`"
        )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.report", description=__doc__)
    for name, meaning in INPUTS.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=meaning)
    parser.add_argument("--out", type=Path, required=True, help="output folder: index.html and its images")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
