"""All that `report` reads, made on the spot: a handful of flat images."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stages import report
from stages.core.artefacts import write_metrics
from stages.core.tensors import write_tensors
from stages.dataset.truth import write_classes
from tests.datasets import write_params

TRAIN, VAL, SIZE, K = 6, 3, 16, 4
NAMES = ("<b>&", "grass")
FIGURES = {"accuracy": 0.61234, "miou": 0.4, "class_accuracy": None, "classes_counted": 2}
FREE = {"clusters_used": 3, "effective_clusters": 2.5, "largest_cluster_share": 0.5, "image_share": 0.25}
READINGS = {
    "score": ["all · overall", "things · truth_alone", "stuff · averaged · many_to_one"],
    "matching": ["one_to_one", "one_to_one", "many_to_one"],
    "classes": ["all", "things", "stuff"],
    "reading": ["overall", "truth_alone", "averaged"],
    "accuracy": [0.61234, 0.5, 0.25],
    "miou": [0.4, "", 0.125],
    "classes_counted": [2, 0, 1],
}
SIDE = {"min": 10, "median": 20, "max": 30}
DATA = {
    "train_images": TRAIN,
    "val_images": VAL,
    "class_shares": {NAMES[0]: 0.25, NAMES[1]: 0.75},
    "ignored_share": 0.125,
    "manifest_sha256": "f" * 64,
    "sizes_px": {
        "train": {"width": SIDE, "height": SIDE},
        "val": {"width": SIDE, "height": dict.fromkeys(SIDE, 9)},
    },
    "notes": ["a <note>"],
    "left_out": {"no <label> map": {"files": 7, "examples": ["a<b>.png"]}},
    "warnings": ["255 is <no> class"],
}
LABEL = {
    "stability": 0.9,
    "effective_clusters": 18.0,
    "agreement_with_position": 0.1,
    "agreement_with_order": 0.1,
}
CONFUSION = {  # clusters in the order of their class: 3, 1, and the two that are nobody's
    "actual": [name for name in NAMES for _ in range(4)],
    "predicted": [*NAMES, "cluster 0", "cluster 2"] * 2,
    "cluster": [3, 1, 0, 2] * 2,
    "pixels": [80, 10, 10, 0, 1, 1, 1, 1],
}
INPUTS = {
    "images": "images",
    "truth": "truth",
    "data": "prepare.json",
    "labels": "labels.safetensors",
    "label-metrics": "label.json",
    "views": "kept_views.npy",
    "centroids": "centroids.safetensors",
    "names": "names.yaml",
    "predictions": "predictions.npy",
    "refined": "refined.npy",
    "pretrain-history": "pretrain.csv",
    "train-history": "train.csv",
    "raw": "raw.json",
    "refined-scores": "refined.json",
    "raw-readings": "raw_readings.csv",
    "refined-readings": "refined_readings.csv",
    "per-class": "classes.csv",
    "confusion": "confusion.csv",
    "out": "report",
}


def write_report_inputs(root: Path) -> None:
    """Class 0 is cluster 3, class 1 cluster 1, clusters 0 and 2 are nobody's."""
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        folder = root / "images" / split
        folder.mkdir(parents=True)
        np.save(folder / "images.npy", random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8))
        index = {"id": range(count), "source": [f"<i>{n}.png" for n in range(count)]}
        index |= {"width": SIZE, "height": SIZE, "sha256": "0" * 64}
        pd.DataFrame(index).to_csv(folder / "index.csv", index=False)
    (root / "truth").mkdir()
    np.save(root / "truth/val.npy", random.choice([0, 1, 255], (VAL, SIZE, SIZE)).astype(np.uint8))
    write_classes(root / "truth", NAMES)
    kept = random.integers(-1, 3, (TRAIN, 6)).astype(np.int32)
    np.save(root / "kept_views.npy", kept)
    tensors = {"score": torch.rand(TRAIN, 6, generator=torch.Generator().manual_seed(0))}
    write_tensors(root / "labels.safetensors", tensors, {})
    write_metrics(root / "label.json", {"label": LABEL})
    write_tensors(root / "centroids.safetensors", {"centroids": torch.eye(K)}, {})
    (root / "names.yaml").write_text("names: {}\n")
    np.save(root / "predictions.npy", random.random((VAL, K, 8, 8)).astype(np.float16))
    np.save(root / "refined.npy", random.integers(0, K, (VAL, SIZE, SIZE), dtype=np.uint8))
    pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.5], "note": ["a", "b"]}).to_csv(
        root / "train.csv", index=False
    )
    (root / "pretrain.csv").write_text("epoch,loss\n")
    write_metrics(root / "prepare.json", {"prepare": DATA})
    raw = {
        "raw": FIGURES | FREE,
        "colour_position": FIGURES | FREE,
        "truth": {"effective_clusters": 1.5, "image_share": 0.125},
    }
    write_metrics(root / "raw.json", raw, {"raw": ["accuracy", "miou"]})
    write_metrics(root / "refined.json", {"refined": FIGURES | FREE})
    for name in ("raw", "refined"):
        pd.DataFrame(READINGS).to_csv(root / f"{name}_readings.csv", index=False)
    classes = {"class": NAMES, "cluster": [3, 1], "iou": [0.5, 0.25], "accuracy": ["", 0.5], "pixels": [0, 9]}
    pd.DataFrame(classes).to_csv(root / "classes.csv", index=False)
    pd.DataFrame(CONFUSION).to_csv(root / "confusion.csv", index=False)


def run_report(root: Path, changes: dict[str, Any] | None = None) -> str:
    """The page, by the command line of the stage; `changes` are of params.yaml."""
    argv = [part for name, path in INPUTS.items() for part in (f"--{name}", str(root / path))]
    params = write_params(root / "params.yaml", changes)
    report.main([*argv, "--params", str(params)])
    return (root / "report/index.html").read_text()
