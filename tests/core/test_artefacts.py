"""Metrics files: what DVC shows of them, and what comes back."""

import json
from pathlib import Path

import pytest
from dvc.repo.metrics.show import _extract_metrics

from stages.core.artefacts import read_metrics, write_metrics
from stages.settings.errors import UserError

METRICS = {
    "raw": {"accuracy": 0.5, "miou": None, "classes": {"sky": 0.25}, "used": 3},
    "baseline": {"accuracy": 0.1234567},
}


def test_all_figures_come_back_and_dvc_shows_the_headline_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write_metrics(path, METRICS, {"raw": ["accuracy", "miou"]})
    rounded = {**METRICS, "baseline": {"accuracy": 0.123457}}
    assert read_metrics(path) == rounded
    assert _extract_metrics(json.loads(path.read_text()), "m.json") == {"raw": {"accuracy": 0.5}}
    write_metrics(path, METRICS)
    assert read_metrics(path) == rounded
    assert _extract_metrics(json.loads(path.read_text()), "m.json") == {}


@pytest.mark.parametrize(
    "text", ["[]", '{"raw": 1}', '{"raw": {"accuracy": 1}}', '{"raw": {"details": []}}', "x"]
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match=r"m\.json: not .*; delete it and run `dvc repro`"):
        read_metrics(tmp_path / "m.json")
