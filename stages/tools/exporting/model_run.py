"""The run that lies beside a model, as far as its dvc.lock, params.yaml and metrics tell."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.core.artefacts import read_metrics
from stages.tools.dvc_lock import LOCK, outdated, read_lock, read_yaml
from stages.tools.model_files import CENTROIDS, SEGMENTER
from stages.tools.segmenting.scored_features import ScoredFeatures
from stages.tools.segmenting.trained_model import PARAMS

# Stages that decide a model, and its files with the stage that makes each.
STAGES = ("prepare", "pretrain", "embed", "label", "select_views", "train", "cluster")
FILES = {SEGMENTER: "train", CENTROIDS: "cluster"}
SCORED = (*STAGES, "predict", "refine", "evaluate@raw", "evaluate@refined")


@dataclass(frozen=True)
class ModelRun:
    """What lies beside a model. The lock and the settings may be of a later run than the model.

    Attributes:
        folder: of the model's files; the others lie in the folder above it.
        stages: of dvc.lock; None if there is none.
        present: sections of params.yaml as it is now; empty without one.
    """

    folder: Path
    stages: Mapping[str, Any] | None
    present: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "ModelRun":
        """Read what lies beside a model.

        Raises:
            UserError: dvc.lock or params.yaml cannot be read.
        """
        project = folder.absolute().parent
        lock, params = project / LOCK, project / PARAMS
        return cls(
            folder,
            read_lock(lock) if lock.is_file() else None,
            read_yaml(params, "settings") if params.is_file() else {},
        )

    @property
    def project(self) -> Path:
        """The folder above that of the model."""
        return self.folder.absolute().parent

    def figures(self, path: str, name: str) -> Mapping[str, Any] | None:
        """Figures of a metrics file; None if the run has none.

        Raises:
            UserError: the file is damaged.
        """
        return read_metrics(self.project / path).get(name) if (self.project / path).is_file() else None

    @cached_property
    def prepared(self) -> Mapping[str, Any] | None:
        """Figures of `prepare`; None if the run has none."""
        return self.figures("metrics/prepare.json", "prepare")

    @cached_property
    def trained(self) -> tuple[dict[str, Any], str]:
        """Sections of params.yaml that the model was trained with; none, and why, if that is not known."""
        if self.stages is None:
            return {}, f"there is no {LOCK} beside it"
        if not all(self._has_made(stage, file) for file, stage in FILES.items()):
            return {}, f"{LOCK} is of another model"
        settings: dict[str, Any] = {}
        values = [item for stage in STAGES for item in self._ran_with(stage).items()]
        is_one = all(settings.setdefault(key, value) == value for key, value in values)
        if not is_one or any(outdated(self.stages, STAGES)):
            return {}, f"the stages in {LOCK} are of several runs"
        return settings, ""

    @property
    def doubt(self) -> str:
        """Why the model may not have seen the data beside it; empty if it has, or if there is no lock."""
        return "" if self.stages is None else self.trained[1]

    @property
    def doubt_of_scores(self) -> str:
        """Why the scores beside the model may not be its own; empty if they are, or if there is no lock."""
        was_made_again = any(outdated(self.stages or {}, SCORED))
        return self.doubt or ("it was made again after them" if was_made_again else "")

    @property
    def has_crf(self) -> bool:
        """Whether the run had a CRF: not with `refine.backend: none`."""
        settings = self._ran_with("refine") or self.present
        return settings.get("refine", {}).get("backend") != "none"

    @property
    def scored_features(self) -> ScoredFeatures | None:
        """Which features the run has scored; None if its lock does not say."""
        ran = self._ran_with("predict")
        return ScoredFeatures.of(ran) if ran else None

    def _stage(self, name: str) -> Mapping[str, Any]:
        return (self.stages or {}).get(name, {})

    def _ran_with(self, stage: str) -> dict[str, Any]:
        """Sections of params.yaml that a stage ran with; none if it has not run."""
        return dict(self._stage(stage).get("params", {}).get(PARAMS, {}))

    def _has_made(self, stage: str, file: str) -> bool:
        """Whether a stage has written a file of the model as it is now, under whatever folder."""
        with (self.folder / file).open("rb") as opened:
            md5 = hashlib.file_digest(opened, "md5").hexdigest()
        outs = self._stage(stage).get("outs", [])
        return any(Path(out["path"]).name == file and out["md5"] == md5 for out in outs)
