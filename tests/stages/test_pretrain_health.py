"""Trainings that go wrong, made to happen: each is named in the log and counted in the metrics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import pretrain
from stages.core.artefacts import read_metrics

ARGV = [
    "--images",
    "images/train",
    "--out",
    "backbone.safetensors",
    "--history",
    "history.csv",
    "--metrics",
    "m.json",
]
FAULTS = ["stuck_at_chance", "collapsed", "one_direction"]


def _run(bench: Any, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[dict[str, int], str]:
    bench.params(**changes)
    pretrain.main(ARGV)
    metrics = read_metrics(Path("m.json"))["pretrain"]
    return metrics["epochs_with_fault"], capsys.readouterr().err


def test_a_sound_training_is_left_in_peace(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    faults, log = _run(bench, capsys)
    assert faults == dict.fromkeys(FAULTS, 0)
    assert "warning" not in log


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        (
            {"pretrain__temperature": 1e5},
            "stuck_at_chance: the loss stays at ln(16) = 2.773, the level of random guessing; raise",
        ),
        (
            {"pretrain__method": "swav", "pretrain__swav__temperature": 1e5},
            "stuck_at_chance: the loss stays at ln(5) = 1.609, the level of random guessing; lower",
        ),
    ],
)
def test_a_loss_that_stays_at_chance(
    bench: Any, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], seen: str
) -> None:
    faults, log = _run(bench, capsys, pretrain__epochs=3, **changes)
    assert faults["stuck_at_chance"] == 2, "not in the epoch of the warm-up"
    assert log.count(f"pretrain: warning: {seen}") == 1, "said once, not every epoch"


def test_embeddings_that_are_all_the_same(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.load("images/train/images.npy")
    np.save("images/train/images.npy", np.zeros_like(images))
    faults, log = _run(bench, capsys)
    assert faults["collapsed"] == 1
    assert "pretrain: warning: collapsed: all images have nearly the same embedding (uniformity " in log
    assert faults["one_direction"] == 1
    assert "pretrain: warning: one_direction: features vary along a single direction (" in log
