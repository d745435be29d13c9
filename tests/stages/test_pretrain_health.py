"""Trainings that go wrong, made to happen: each is named in the log and counted in the metrics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import pretrain
from stages.core.artefacts import read_metrics
from stages.pretraining import slotcon

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
            "stuck_at_chance: the loss stays at ln(5) = 1.609, the level of random guessing; raise",
        ),
        (
            {"pretrain__method": "densecl", "pretrain__temperature": 1e5},
            "stuck_at_chance: the loss stays at ln(16) = 2.773, the level of random guessing; raise",
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


@pytest.mark.parametrize("method", ["densecl", "slotcon"])
def test_empty_images_collapse_the_methods_of_cells_too(
    bench: Any, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    images = np.load("images/train/images.npy")
    np.save("images/train/images.npy", np.zeros_like(images))
    faults, log = _run(bench, capsys, pretrain__method=method)
    assert faults["collapsed"] == 1
    assert "pretrain: warning: collapsed: all images have nearly the same embedding (uniformity " in log


def test_cells_that_all_belong_to_one_prototype(
    bench: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's first prototype is every cell's nearest: its cells have no place but its own."""
    score = slotcon.group

    def first_wins(*args: Any) -> Any:
        grouped = score(*args)
        bonus = torch.zeros(grouped.score.shape[1], 1, 1)
        bonus[0] = 3.0
        return grouped._replace(score=grouped.score + bonus)

    monkeypatch.setattr(slotcon, "group", first_wins)
    faults, log = _run(bench, capsys, pretrain__method="slotcon", pretrain__epochs=3)
    assert faults["one_prototype"] == 2, "not in the epoch of the warm-up"
    seen = "one_prototype: nearly all cells belong to one of 5 prototypes (1 in effect); look at the images"
    assert log.count(f"pretrain: warning: {seen}") == 1
    assert set(faults) == {"collapsed", "one_direction", "one_prototype"}
