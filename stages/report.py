"""Stage `report`: one page of a verdict, scores, segmentations, clusters and curves (Figures 1, 5 to 7)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.atomic import atomic_folder
from stages.postprocessing.score_maps import cluster_maps
from stages.pseudo_labels.pyramid import has_parts, view_boxes
from stages.reporting.cards import cluster_cards, heat_map
from stages.reporting.curves import MEANINGS, curves
from stages.reporting.evidence import Evidence
from stages.reporting.inputs import INPUTS, Inputs, misfits, read_inputs
from stages.reporting.legend import Legend, cluster_legend, read_legend, write_cluster_legend
from stages.reporting.names import LONGEST, Names, OtherClustersError, names_text, read_names
from stages.reporting.page import (
    class_bars,
    data_tables,
    label_shares,
    reading_table,
    render,
    score_shares,
    score_table,
    settings_rows,
)
from stages.reporting.palette import colourise
from stages.reporting.pictures import Pictures, Row, draw_exemplars, exemplars, panel, save
from stages.reporting.regions import draw_regions, purest_regions
from stages.reporting.verdict import verdict
from stages.reporting.wall import Split, draw_wall, spread
from stages.runtime.progress import say, track, warn
from stages.runtime.script import run, stage_parser
from stages.runtime.watch import Watch
from stages.settings.errors import raise_faults
from stages.settings.params import load
from stages.settings.schema import Params

# All that decide a result: the page lists every setting.
# fmt: off
KEYS = (
    "preset", "seed", "size_px", "global_k", "pixel_k", "select_ratio", "crop_ratio", "precision",
    "deterministic", "compile",
    "backbone", "prepare", "pretrain", "embed", "label", "select_views", "train",
    "cluster", "predict", "refine", "evaluate", "report",
)
# fmt: on
# Name of the file of `pretrain`, from which a warm start (`make pin WARM=1`) begins: nothing published.
OWN_BACKBONE = "backbone.safetensors"
PANEL_TILE_PX, PANEL_COLUMNS, PANEL_SPREAD = 112, 6, 8  # of panels.png: the first 6 of 8 over the whole split


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page and its images."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    watch = Watch("report", args.params, KEYS, [getattr(args, name.replace("-", "_")) for name in INPUTS])
    inputs = read_inputs(args, has_crf=params.refine.backend != "none")
    raise_faults(misfits(args, inputs))
    names, unused = _names(args.names, inputs)
    legend = read_legend(inputs.val.truth.class_names, inputs.per_class, inputs.num_centroids, names)
    with atomic_folder(args.out) as folder:
        pictures = Pictures(folder, params.report.single_file)
        content = {**_judged(inputs, params, unused), **_drawn(inputs, params, legend, pictures)}
        (folder / "index.html").write_text(render(**content), encoding="utf-8")
        if not params.report.single_file:
            _draw_panels(folder, inputs.val, legend)
        write_cluster_legend(folder / "legend.json", cluster_legend(legend), inputs.clusters.own)
        watch.check()
    for finding in content["findings"]:
        if finding.kind == "wrong":
            warn("report", finding.text)
    say("report", images=len(content["wall"]), page=args.out / "index.html")


def _names(path: Path, inputs: Inputs) -> tuple[Names, str]:
    """The given names; none, and why, if they are for other clusters."""
    try:
        return read_names(path, num_clusters=inputs.num_centroids, clusters=inputs.clusters), ""
    except OtherClustersError as fault:
        return Names(), str(fault)


def _judged(inputs: Inputs, params: Params, unused_names: str) -> dict[str, Any]:
    """What the page says in words and numbers."""
    evidence = Evidence(
        metrics=inputs.metrics,
        per_class=inputs.per_class,
        label=inputs.label,
        data=inputs.data,
        num_clusters=inputs.num_centroids,
        global_k=params.global_k,
        guidance=_guidance(inputs, params),
        parts_guide=has_parts(inputs.kept_views),
        balance=params.train.pixel_loss.balance,
        trains=params.pretrain.trains and params.pretrain.epochs > 0,
        is_published=Path(params.pretrain.init).name not in ("", OWN_BACKBONE),
        weak=params.label.weak,
        collapse_below=params.train.clustering.collapse_below,
        unused_names=unused_names,
    )
    return {
        "has_truth": inputs.val.truth.has_labels,
        "num_train": len(inputs.train),
        "num_val": len(inputs.val.images),
        "num_clusters": inputs.num_centroids,
        "findings": verdict(evidence),
        "data": data_tables(inputs.data),
        "manifest": inputs.data["manifest_sha256"],
        "has_crf": inputs.val.has_crf,
        "scores": score_table(inputs.metrics, has_crf=inputs.val.has_crf),
        "readings": reading_table(inputs.readings),
        "histories": {name: curves(history, MEANINGS[name]) for name, history in inputs.histories.items()},
        "settings": settings_rows(params),
        "preset": params.preset,
        "seed": params.seed,
        "clusters_id": inputs.clusters.own,
    }


def _guidance(inputs: Inputs, params: Params) -> float:
    """The weight of guidance; what `train` chose, if it is `auto`."""
    weight = params.train.image_loss.weight
    return float(inputs.histories["train"]["guidance_weight"].max()) if weight == "auto" else weight


def _drawn(inputs: Inputs, params: Params, legend: Legend, pictures: Pictures) -> dict[str, Any]:
    """What the page shows in pictures and colors."""
    val, report = inputs.val, params.report
    shown = spread(len(val.images), report.num_images)
    wall = list(track(draw_wall(val, shown, legend, pictures), "report", unit="image", total=len(shown)))
    found = purest_regions(val.scores, legend.merged, report.regions_per_cluster)
    regions = {
        cluster: draw_regions(places, cluster, legend.merged, val.scores, val.images, pictures)
        for cluster, places in found.items()
    }
    shares = score_shares(val.scores), label_shares(val.refined, inputs.num_centroids)
    gallery = exemplars(
        inputs.kept_views,
        inputs.view_score,
        num_clusters=report.num_clusters,
        views_per_cluster=report.views_per_cluster,
    )
    boxes = np.asarray(view_boxes(params.crop_ratio))
    views = draw_exemplars(gallery, inputs.train, boxes, pictures)
    return {
        "size_px": val.images.shape[1],
        "wall": wall,
        "legend": legend.entries(),
        "shows_matching": legend.shows_matching,
        "class_bars": class_bars(legend, inputs.per_class),
        "heat_map": heat_map(inputs.confusion, legend),
        "cards": cluster_cards(legend, *shares, regions, inputs.per_class),
        "gallery": list(zip(gallery, views, strict=True)),
        "longest_name": LONGEST,
        "names": {
            "empty": names_text(Names(), inputs.clusters.own),
            "colors": {
                name: "#" + bytes(colour).hex() for name, colour in sorted(legend.names.colours.items())
            },
        },
    }


def _draw_panels(folder: Path, val: Split, legend: Legend) -> None:
    """Draw panels.png: a few images in one picture, for a README or a talk."""
    shown = spread(len(val.images), PANEL_SPREAD)[:PANEL_COLUMNS]
    predicted = cluster_maps(val.scores[shown], val.images.shape[1])
    rows = [
        Row("image", val.images[shown], is_labels=False),
        Row("prediction", colourise(predicted, legend.cluster_colours), is_labels=True),
    ]
    if val.has_crf:
        rows.append(Row("with CRF", colourise(val.refined[shown], legend.cluster_colours), is_labels=True))
    if val.truth.has_labels:
        truth = colourise(val.truth.maps[shown], legend.class_colours)
        rows.insert(1, Row("truth", truth, is_labels=True))
    save(panel(rows, tile_px=PANEL_TILE_PX), folder / "panels.png")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = stage_parser("report", __doc__)
    for name, meaning in INPUTS.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=meaning)
    parser.add_argument("--out", type=Path, required=True, help="output folder: index.html and its images")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
