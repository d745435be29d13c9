"""Which features of pixels the run of a model has scored, by the params.yaml beside the folder of the model.

Apart from the strict reading of settings, because a model may lie beside a params.yaml of another version.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.settings.params import flat
from stages.tools.dvc_lock import read_yaml


class ScoredFeatures(NamedTuple):
    """The settings of `scored_pixels`: `predict.mirror` and `predict.unit_features`."""

    mirror: bool = False
    unit_features: bool = True

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "ScoredFeatures":
        """From sections of params.yaml; what is not there is as in a run without these choices."""
        found = dict(flat(settings))
        return cls(
            mirror=found.get("predict.mirror", False) is True,
            unit_features=found.get("predict.unit_features", True) is not False,
        )

    def __str__(self) -> str:
        return ", ".join(f"predict.{key}: {str(value).lower()}" for key, value in self._asdict().items())


def read_scored_features(path: Path) -> ScoredFeatures:
    """Those that a params.yaml says; without one those of a run without these choices.

    Raises:
        UserError: it cannot be read.
    """
    return ScoredFeatures.of(read_yaml(path, "settings") if path.is_file() else {})
