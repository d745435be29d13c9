"""Write a first names.yaml: clusters named after their matched classes, or by number without labels.

Names that a person gave are not replaced without --force: edit the file, or use the form of the report page.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stages.core.artefacts import read_csv
from stages.core.tensors import read_tensors
from stages.dataset.truth import UNMATCHED, read_classes
from stages.postprocessing.score_maps import open_scores
from stages.reporting.legend import Legend, read_legend
from stages.reporting.lineage import Lineage, lineage
from stages.reporting.names import FILE, LONGEST, Names, OtherClustersError, read_names, write_names
from stages.reporting.page import score_shares
from stages.runtime.script import run
from stages.settings.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file, with a remark on each cluster."""
    args = _parse(argv)
    clusters = lineage(args.centroids)
    num_clusters = len(read_tensors(args.centroids, "centroids")[0]["centroids"])
    class_names, _ = read_classes(args.truth / "classes.csv")
    per_class = read_csv(args.per_class, ("class",))
    legend = read_legend(class_names, per_class, num_clusters, Names())
    scores = open_scores(args.predictions)
    if scores.shape[1] != num_clusters:
        raise UserError(
            f"{args.predictions}: has {scores.shape[1]} clusters, but {args.centroids} has {num_clusters}; "
            "run `dvc repro predict`"
        )
    if not args.force:
        _check_unnamed(args.names, num_clusters, clusters)
    names = {cluster: legend.cluster_name(cluster)[:LONGEST] for cluster in range(num_clusters)}
    shares = score_shares(scores)
    remarks = {
        cluster: f"{100 * share:.1f} % of the pixels{_match(legend, per_class, cluster)}"
        for cluster, share in enumerate(shares)
    }
    write_names(args.names, Names(names), clusters.own, remarks)
    print(
        f"{args.names}: {num_clusters} clusters, named by {'class' if class_names else 'number'}; edit it, "
        "then run dvc repro report"
    )


def _check_unnamed(path: Path, num_clusters: int, clusters: Lineage) -> None:
    """Refuse to replace a file that has names which a person gave.

    Raises:
        UserError: it has, or it is not a names file.
    """
    if not path.exists():
        return
    try:
        given = read_names(
            path,
            num_clusters=num_clusters,
            clusters=clusters,
            may_lack_clusters=True,
            keeps_gone=True,  # they would be lost too
        ).of
    except OtherClustersError as fault:
        raise UserError(
            f"{path}: has names for other clusters, which would be lost; keep a copy if you want them, then "
            "run make names FORCE=1"
        ) from fault
    if given:
        examples = ", ".join(f"{cluster}: {name}" for cluster, name in list(given.items())[:3])
        raise UserError(
            f"{path}: has {len(given)} names ({examples}), which would be lost; edit the file by hand or "
            "with the form of the report page, or replace them with make names FORCE=1"
        )


def _match(legend: Legend, per_class: pd.DataFrame, cluster: int) -> str:
    """What to say of the match of a cluster, if there is one."""
    class_id = int(legend.cluster_to_class[cluster])
    if class_id == UNMATCHED:
        return ", no class" if legend.class_names else ""
    iou = pd.to_numeric(per_class["iou"], errors="coerce")[class_id]
    return "" if pd.isna(iou) else f", IoU {100 * iou:.1f} %"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.tools.name_clusters", description=__doc__)
    files = {
        "names": (FILE, "output file"),
        "centroids": (Path("models/pixel_centroids.safetensors"), "pixel centroids from `cluster`"),
        "predictions": (Path("data/predictions.npy"), "scores of the validation images from `predict`"),
        "truth": (Path("data/truth"), "folder of the class names from `prepare`"),
        "per-class": (Path("metrics/evaluate/raw_per_class.csv"), "matching from `evaluate`"),
    }
    for name, (default, meaning) in files.items():
        parser.add_argument(f"--{name}", type=Path, default=default, help=f"{meaning} (default: {default})")
    parser.add_argument("--force", action="store_true", help="replace names that a person gave")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
