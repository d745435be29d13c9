"""The HTML page: a template filled with results; all names are HTML-escaped."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float16, UInt8
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.postprocessing.score_maps import chunks, cluster_maps
from stages.reporting.legend import Legend, css
from stages.settings.errors import UserError
from stages.settings.params import flat
from stages.settings.schema import Params


def score_shares(scores: Float16[np.ndarray, "M K h w"]) -> Float[np.ndarray, " K"]:
    """Compute the pixel fraction of each cluster in the predictions, at feature resolution."""
    height, num_clusters = scores.shape[2], scores.shape[1]
    counts = np.zeros(num_clusters, np.int64)
    for images in chunks(scores, height):
        counts += np.bincount(cluster_maps(scores[images], height).ravel(), minlength=num_clusters)
    return counts / max(int(counts.sum()), 1)


def label_shares(labels: UInt8[np.ndarray, "M S S"], num_clusters: int) -> Float[np.ndarray, " K"]:
    """Compute the pixel fraction of each cluster in label maps, with one image in memory at a time.

    Raises:
        ValueError: a label is not a cluster id.
    """
    counts = np.zeros(256, np.int64)
    for image in labels:
        counts += np.bincount(image.ravel(), minlength=256)
    if counts[num_clusters:].any():
        raise ValueError(f"label {int(np.flatnonzero(counts).max())} is not an id of {num_clusters} clusters")
    return counts[:num_clusters] / max(int(counts.sum()), 1)


def data_tables(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Build the rows of the data set tables; fractions are formatted in percent.

    Args:
        summary: `prepare` of metrics/prepare.json.
    """
    return {
        "splits": [
            {
                "name": name,
                "images": summary[f"{split}_images"],
                "sides": [_sides(summary["sizes_px"][split][side]) for side in ("width", "height")],
            }
            for split, name in (("train", "to learn from"), ("val", "to look at"))
        ],
        "classes": [
            {"name": name, "share": _percent(share)} for name, share in summary["class_shares"].items()
        ],
        "ignored": _percent(summary["ignored_share"]),
        "left_out": [
            {"reason": reason, "count": names["files"], "examples": ", ".join(names["examples"])}
            for reason, names in summary["left_out"].items()
        ],
        "notes": summary["notes"],
        "warnings": summary["warnings"],
    }


def _sides(side: Mapping[str, int]) -> str:
    """Format the median side, with the range if sides differ."""
    if side["min"] == side["max"]:
        return f"{side['median']}"
    return f"{side['median']} ({side['min']} to {side['max']})"


# Key of the metrics, heading, and format: fraction (in percent), count or number.
COLUMNS = (
    ("accuracy", "pixel accuracy", "fraction"),
    ("miou", "mIoU", "fraction"),
    ("class_accuracy", "class accuracy", "fraction"),
    ("clusters_used", "clusters in use", "count"),
    ("effective_clusters", "effective clusters", "number"),
    ("largest_cluster_share", "largest cluster", "fraction"),
    ("image_share", "told by the image alone", "fraction"),
)
ROWS = {
    "raw": "prediction",
    "refined": "prediction + CRF",
    "colour_position": "k-means on color and position",
    "truth": "truth",
}


def render(**content: Any) -> str:
    """Render the page as HTML; styles and script are in it, and it links only to pictures in its folder."""
    return environment().get_template("page.html").render(**content)


def environment(*folders: Path) -> Environment:
    """Templates of this room, and of `folders`; what they are given is escaped."""
    return Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def score_table(metrics: Mapping[str, Mapping[str, float | None]], *, has_crf: bool) -> dict[str, Any]:
    """Build headings and rows of the headline table, without empty columns; with a row of the CRF if any."""
    columns = [column for column in COLUMNS if any(column[0] in row for row in metrics.values())]
    rows = [
        {
            "name": name,
            "is_baseline": key == "colour_position",
            "cells": [_shown(metrics[key], *column) for column in columns],
        }
        for key, name in ROWS.items()
        if key in metrics and (has_crf or key != "refined")
    ]
    return {"headings": [heading for _, heading, _ in columns], "rows": rows}


def reading_table(readings: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Build the rows of the table of readings: scores of the prediction, then scores after the CRF.

    Args:
        readings: tables of `evaluate`, `raw` and `refined`, with the same rows.

    Raises:
        UserError: the rows of the two tables differ.
    """
    raw, refined = readings["raw"], readings["refined"]
    if list(raw["score"]) != list(refined["score"]):
        raise UserError("tables of readings: rows of raw and refined differ; run `dvc repro evaluate`")
    return [
        {
            "classes": str(first["classes"]),
            "reading": str(first["reading"]).replace("_", " "),
            "matching": str(first["matching"]).replace("_", " "),
            "cells": [_percent_cell(row[key]) for row in (first, second) for key in ("accuracy", "miou")],
            "counted": int(first["classes_counted"]),
        }
        for first, second in zip(raw.to_dict("records"), refined.to_dict("records"), strict=True)
    ]


def class_bars(legend: Legend, per_class: pd.DataFrame) -> list[dict[str, Any]]:
    """List the classes by decreasing IoU; classes without IoU come last."""
    table = per_class.assign(
        colour=[css(colour) for colour in legend.class_colours],
        key=[f"c{class_id}" for class_id in range(len(legend.class_names))],
    )
    for column in ("iou", "accuracy"):
        table[column] = pd.to_numeric(table[column], errors="coerce")
    table = table.sort_values("iou", ascending=False, kind="stable", na_position="last")
    return [
        {
            "key": row["key"],
            "name": str(row["class"]),
            "colour": row["colour"],
            "iou": _percent(row["iou"]),
            "accuracy": _percent(row["accuracy"]),
        }
        for row in table.to_dict("records")
    ]


def settings_rows(params: Params) -> list[tuple[str, str]]:
    """List all settings as (dotted key, value in YAML)."""
    return [(key, json.dumps(value, ensure_ascii=False)) for key, value in flat(params.model_dump())]


def _shown(row: Mapping[str, float | None], key: str, _: str, kind: str) -> str:
    value = row.get(key)
    if value is None:
        return "–"
    return {"fraction": f"{100 * value:.1f}", "count": f"{value:.0f}", "number": f"{value:.1f}"}[kind]


def _percent_cell(value: object) -> str:
    """Format a cell of fractions in percent; a dash if the value is empty."""
    return _percent(float(str(value)) if value != "" else math.nan) or "–"


def _percent(value: float) -> str | None:
    """Format a fraction in percent for text and CSS; None if it is not finite."""
    return f"{100 * value:.1f}" if math.isfinite(value) else None
