"""Each panel of a training history says what it shows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.backbone.checkpoint import build_backbone, describe
from stages.pretraining.pretrainer import EPOCH_FIGURES
from stages.pretraining.pretrainer import FIGURES as PRETRAIN_FIGURES
from stages.reporting.curves import MEANINGS, X_COLUMN, curves
from stages.settings.params import load
from stages.train import KEYS
from stages.training.building import build_segmenter, build_trainer
from stages.training.trainer import FIGURES
from tests.datasets import write_params


def _train_columns(folder: Path) -> set[str]:
    """Columns of the history of a training that has all that a training can have."""
    params = load(write_params(folder / "params.yaml", {"train.image_loss.held_out": 0.5}), *KEYS)
    segmenter = build_segmenter(build_backbone(describe(params.backbone)), params, 1.0)
    trainer = build_trainer(segmenter, np.zeros((4, 6), np.int32), params, 1.0)
    return {*FIGURES, *trainer.names_of_epoch_figures()}


def test_every_figure_of_training_is_explained(tmp_path: Path) -> None:
    """Those of pretraining are the same with every method."""
    assert set(MEANINGS["pretrain"]) == {*PRETRAIN_FIGURES, *EPOCH_FIGURES}
    assert set(MEANINGS["train"]) == _train_columns(tmp_path)


@pytest.mark.parametrize("name", MEANINGS)
def test_a_panel_has_the_meaning_of_its_column(name: str) -> None:
    history = pd.DataFrame({X_COLUMN: [1, 2], **{column: [0.5, 0.25] for column in MEANINGS[name]}, "new": 1})
    panels = {curve.name: curve.meaning for curve in curves(history, MEANINGS[name])}
    assert panels == {column.replace("_", " "): text for column, text in MEANINGS[name].items()} | {"new": ""}


def test_meanings_are_half_sentences() -> None:
    for text in (text for table in MEANINGS.values() for text in table.values()):
        assert not text.endswith(".")
        assert len(text) <= 200
