"""The settings that a model was trained with, as far as the dvc.lock beside it tells."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.tools.dvc_lock import LOCK, outdated, read_lock, read_yaml
from stages.tools.model_files import CENTROIDS, SEGMENTER
from stages.tools.segmenting.scored_features import ScoredFeatures
from stages.tools.segmenting.trained_model import PARAMS

# Stages that decide a model, and its files with the stage that makes each.
STAGES = ("prepare", "pretrain", "embed", "label", "select_views", "train", "cluster")
FILES = {SEGMENTER: "train", CENTROIDS: "cluster"}
SCORED = (*STAGES, "predict", "refine", "evaluate@raw", "evaluate@refined")


def trained_settings(folder: Path) -> tuple[dict[str, Any], str]:
    """Sections of params.yaml that a model was trained with; none, and why, if that is not known.

    Args:
        folder: of the model; beside it may be the dvc.lock of its run, and of later ones.

    Raises:
        UserError: dvc.lock cannot be read.
    """
    path = folder.absolute().parent / LOCK
    if not path.is_file():
        return {}, f"there is no {LOCK} beside it"
    stages = read_lock(path)
    if not all(_has_made(stages.get(stage, {}), folder / file) for file, stage in FILES.items()):
        return {}, f"{LOCK} is of another model"
    settings: dict[str, Any] = {}
    values = [item for stage in STAGES for item in _params(stages, stage).items()]
    is_one = all(settings.setdefault(key, value) == value for key, value in values)
    if not is_one or any(outdated(stages, STAGES)):
        return {}, f"the stages in {LOCK} are of several runs"
    return settings, ""


def has_older_scores(folder: Path) -> bool:
    """Whether the model has been made again since it was scored, as far as the dvc.lock beside it tells.

    Raises:
        UserError: dvc.lock cannot be read.
    """
    return any(outdated(_stages(folder.absolute().parent), SCORED))


def _stages(project: Path) -> dict[str, Any]:
    """The stages of the dvc.lock in a folder; none without one."""
    lock = project / LOCK
    return read_lock(lock) if lock.is_file() else {}


def _params(stages: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Sections of params.yaml that a stage ran with."""
    return dict(stages.get(stage, {}).get("params", {}).get(PARAMS, {}))


def _has_made(stage: Mapping[str, Any], path: Path) -> bool:
    """Whether a stage has written a file as it is now, under whatever folder."""
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    return any(Path(out["path"]).name == path.name and out["md5"] == md5 for out in stage.get("outs", []))


def present_settings(project: Path) -> dict[str, Any]:
    """Sections of the params.yaml in a folder as it is now; none without one.

    Raises:
        UserError: it cannot be read.
    """
    path = project / PARAMS
    return read_yaml(path, "settings") if path.is_file() else {}


def has_crf(project: Path) -> bool:
    """Whether the run in a folder had a CRF: not with `refine.backend: none`.

    Raises:
        UserError: its dvc.lock or its params.yaml cannot be read.
    """
    ran = _params(_stages(project), "refine")
    settings = ran or present_settings(project)
    return settings.get("refine", {}).get("backend") != "none"


def features_of_run(project: Path) -> ScoredFeatures | None:
    """Which features the run in a folder has scored; None if its dvc.lock does not say.

    Raises:
        UserError: its dvc.lock cannot be read.
    """
    ran = _params(_stages(project), "predict")
    return ScoredFeatures.of(ran) if ran else None
