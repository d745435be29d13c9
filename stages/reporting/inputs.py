"""What the page is made of: the files that it reads, and whether they fit together."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.core.artefacts import read_array, read_csv, read_metrics
from stages.core.images import open_images, read_index
from stages.core.tensors import read_tensors
from stages.dataset.truth import read_truth
from stages.postprocessing.score_maps import open_scores
from stages.pseudo_labels.pyramid import VIEWS
from stages.reporting.lineage import Lineage, lineage
from stages.reporting.wall import Split, image_names

INPUTS = {
    "images": "folder of the packed images of both splits from `prepare`",
    "truth": "folder of label maps and class names from `prepare`",
    "data": "data set summary from `prepare` (.json)",
    "labels": "pseudo-label and score of every view from `label` (.safetensors)",
    "label-metrics": "figures of `label` (.json)",
    "views": "pseudo-label of every kept view, int32 [N, 6], from `select_views` (.npy)",
    "centroids": "pixel centroids from `cluster`, which tell whose names are given (.safetensors)",
    "names": "names that people gave to clusters (.yaml)",
    "predictions": "scores float16 [M, K, h, w] from `predict` (.npy)",
    "refined": "cluster ids after the CRF, uint8 [M, S, S], from `refine` (.npy)",
    "pretrain-history": "metrics of each epoch of `pretrain` (.csv)",
    "train-history": "metrics of each epoch of `train` (.csv)",
    "raw": "scores of the prediction (.json)",
    "refined-scores": "scores after the CRF (.json)",
    "raw-readings": "scores of things and stuff in every reading, for the prediction (.csv)",
    "refined-readings": "the same scores after the CRF (.csv)",
    "per-class": "scores of each class and its matched cluster (.csv)",
    "confusion": "pixel counts of each class and cluster (.csv)",
}


@dataclass(frozen=True)
class Inputs:
    """All inputs of the page; large arrays are memory maps."""

    train: np.ndarray
    val: Split
    kept_views: np.ndarray
    view_score: np.ndarray
    num_centroids: int
    clusters: Lineage
    data: dict[str, Any]
    label: dict[str, Any]
    metrics: dict[str, Any]
    readings: dict[str, pd.DataFrame]
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    histories: dict[str, pd.DataFrame]


def read_inputs(args: argparse.Namespace, *, has_crf: bool) -> Inputs:
    """Open the files of `INPUTS`.

    Args:
        args: the argument of each has the name of its flag.
        has_crf: whether `refine` ran a CRF.

    Raises:
        UserError: a file is missing or damaged.
    """
    images = open_images(args.images / "val")
    tensors, _ = read_tensors(args.labels)
    centroids, _ = read_tensors(args.centroids, "centroids")
    return Inputs(
        train=open_images(args.images / "train"),
        val=Split(
            images,
            image_names(read_index(args.images / "val")["source"]),
            read_truth(args.truth),
            open_scores(args.predictions, len(images)),
            read_array(args.refined, memory_map=True),
            has_crf,
        ),
        kept_views=read_array(args.views),
        view_score=tensors["score"].numpy() if "score" in tensors else np.empty(0),
        num_centroids=len(centroids["centroids"]),
        clusters=lineage(args.centroids),
        data=read_metrics(args.data)["prepare"],
        label=read_metrics(args.label_metrics)["label"],
        metrics={**read_metrics(args.raw), **read_metrics(args.refined_scores)},
        readings={"raw": read_csv(args.raw_readings), "refined": read_csv(args.refined_readings)},
        per_class=read_csv(args.per_class, ("class",)),
        confusion=read_csv(args.confusion, ("actual", "predicted")),
        histories={"pretrain": read_csv(args.pretrain_history), "train": read_csv(args.train_history)},
    )


def misfits(args: argparse.Namespace, inputs: Inputs) -> Iterator[str]:
    """Yield one line for each mismatch between the inputs."""
    val, num_clusters = inputs.val, inputs.val.scores.shape[1]
    views = len(inputs.train), len(VIEWS)
    expected = {
        args.truth / "val.npy": (val.truth.maps.shape, val.images.shape[:3]),
        args.refined: (val.refined.shape, val.images.shape[:3]),
        args.views: (inputs.kept_views.shape, views),
        args.labels: (inputs.view_score.shape, views),
    }
    for path, (found, wanted) in expected.items():
        if found != wanted:
            yield f"{path}: has shape {list(found)}, but the images require {list(wanted)}; run `dvc repro`"
    if inputs.num_centroids != num_clusters:
        yield (
            f"{args.centroids}: has {inputs.num_centroids} clusters, but the predictions have "
            f"{num_clusters}; run `dvc repro predict`"
        )
    if (largest := int(np.max(val.refined, initial=0))) >= num_clusters:
        yield (
            f"{args.refined}: has cluster id {largest}, but there are {num_clusters} clusters; "
            "run `dvc repro refine`"
        )
