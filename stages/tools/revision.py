"""The results of a revision, read from git and from DVC's cache; or those of the working tree."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc_data.index import DataIndexError

from stages.core.artefacts import read_array, read_csv, read_metrics
from stages.core.images import open_images, read_index
from stages.dataset.truth import read_truth
from stages.postprocessing.score_maps import open_scores
from stages.reporting.legend import Legend, read_legend
from stages.reporting.lineage import lineage
from stages.reporting.names import Names, OtherClustersError, read_names
from stages.reporting.wall import Split, image_names
from stages.runtime.watch import summarise
from stages.settings.errors import UserError
from stages.settings.params import flat
from stages.settings.yaml_text import parsed
from stages.tools.changes import changed_stages
from stages.tools.dvc_lock import LOCK, outdated, read_lock

NEEDED = (
    "params.yaml",
    "data/images/val",
    "data/truth",
    "data/predictions.npy",
    "data/refined.npy",
    "models/pixel_centroids.safetensors",
    "metrics/evaluate/raw.json",
    "metrics/evaluate/refined.json",
    "metrics/evaluate/raw_per_class.csv",
)
WORKSPACE = "workspace"  # what DVC calls the working tree
NAMES = "names.yaml"  # older commits have none, and a run without stages has no lock
SHOWN_LAST = ("refine", "evaluate@refined")  # what a run up to `evaluate@raw` leaves as it was before
UNSEEN = ("report",)  # stages that make nothing that is compared


@dataclass(frozen=True)
class Run:
    """One of the two runs.

    Attributes:
        revision: as it was asked for.
        settings: values by dotted key.
        metrics: figures of `raw`, `refined`, `colour_position` and `truth`.
        index: the validation images, one row each.
        split: their pixels, truth, scores and refined maps.
        legend: names and colors.
    """

    revision: str
    settings: Mapping[str, Any]
    metrics: dict[str, Any]
    index: pd.DataFrame
    split: Split
    legend: Legend


def read_run(revision: str, folder: Path) -> Run:
    """Open the working tree as it lies there, or copy what is `NEEDED` of a revision, and open that.

    Args:
        revision: experiment, branch, tag or commit, or `WORKSPACE`.
        folder: scratch folder.

    Raises:
        UserError: there is no such revision, its results are neither in git nor in DVC's cache, those of the
            working tree are not up to date, or another version of this project has made them.
    """
    if revision == WORKSPACE:
        folder = Path.cwd()
        _check_up_to_date()
    else:
        _copy(revision, folder)
    try:
        return _open_run(revision, folder)
    except UserError as error:
        fault = str(error).replace(f"{folder}/", "")
        raise UserError(
            f"{revision}: its results are damaged, or made by a version of this project that writes others "
            f"({fault})"
        ) from error


def _check_up_to_date() -> None:
    """Refuse a working tree whose results are of other settings, code or data than those that lie there.

    Raises:
        UserError: a stage would run again.
    """
    try:
        stale = [name for name in changed_stages() if name not in UNSEEN]
    except UserError as error:
        raise UserError(f"{WORKSPACE}: {error}") from error
    if stale:
        raise UserError(
            f"{WORKSPACE}: has changed since its last run, at {summarise(stale)} (see `dvc status`); "
            "run `dvc repro`, or name the commit of the results"
        )


def _copy(revision: str, folder: Path) -> None:
    """Copy what is `NEEDED` of a revision to a scratch folder.

    Raises:
        UserError: as of `read_run`.
    """
    try:
        files = DVCFileSystem(str(Path.cwd()), rev=revision)
        for path in (*NEEDED, *filter(files.exists, (NAMES, LOCK))):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            files.get(path, str(folder / path), recursive=True)
    except DvcException as error:
        raise UserError(f"{revision}: {error}; `dvc exp show` and `git log` list revisions") from error
    except (FileNotFoundError, DataIndexError) as error:
        raise UserError(
            f"{revision}: {error}; its results are neither in git nor in DVC's cache: commit a run "
            "with `git commit -a` before you name it, run `dvc fetch --all-commits` if you have a remote, or "
            "check it out and run `dvc repro`"
        ) from error
    if (folder / LOCK).exists():
        _check_whole(revision, folder / LOCK)


def _check_whole(revision: str, lock: Path) -> None:
    """Refuse a run of some stages only, whose refined results are those of an earlier prediction.

    Raises:
        UserError: a stage of `SHOWN_LAST` has read other files than the stages before it have written.
    """
    for name, path in outdated(read_lock(lock), SHOWN_LAST):
        raise UserError(
            f"{revision}: {name} has not run since {path} changed, so its result is that of another run "
            "(`make table` ends at evaluate@raw); run all stages with these settings: `dvc exp run --temp -n "
            "NAME -S ...` takes those that are done from the cache"
        )


def _open_run(revision: str, folder: Path) -> Run:
    """Open the files of a run."""
    images = open_images(folder / "data/images/val")
    scores = open_scores(folder / "data/predictions.npy", len(images))
    truth = read_truth(folder / "data/truth")
    index = read_index(folder / "data/images/val")
    refined = read_array(folder / "data/refined.npy", memory_map=True)
    evaluated = folder / "metrics/evaluate"
    per_class = evaluated / "raw_per_class.csv"
    names = _names(folder, scores.shape[1])
    params = folder / "params.yaml"
    settings = dict(flat(parsed(params.read_bytes(), str(params))))
    has_crf = settings.get("refine.backend") != "none"
    return Run(
        revision,
        settings,
        {**read_metrics(evaluated / "raw.json"), **read_metrics(evaluated / "refined.json")},
        index,
        Split(images, image_names(index["source"]), truth, scores, refined, has_crf),
        read_legend(truth.class_names, read_csv(per_class, ("class",)), scores.shape[1], names),
    )


def _names(folder: Path, num_clusters: int) -> Names:
    """The names of a run; none if it has no file, or one for other clusters, as the page of the run says."""
    if not (folder / NAMES).exists():
        return Names()
    clusters = lineage(folder / "models/pixel_centroids.safetensors")
    try:
        return read_names(folder / NAMES, num_clusters=num_clusters, clusters=clusters)
    except OtherClustersError:
        return Names()
