"""Batches that pass through the network in parts: the gradients, and so the weights, of the whole batch."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from stages import pretrain, train
from tests.tensors import assert_near
from tests.workbench import TRAIN_INPUTS

OUTPUTS = ["--out", "out", "--history", "h.csv", "--metrics", "m.json"]
PRETRAIN = ["--images", "images/train", *OUTPUTS]
TRAIN = [*TRAIN_INPUTS, *OUTPUTS]

# A ViT has no batch norm; and passes that cut no group of `bn_splits` leave the groups as they are.
VIT = {"backbone__arch": "vit_small", "backbone__width": 2, "pretrain__head_batch_norm": False}
PRETRAINING: dict[str, tuple[int, dict[str, Any]]] = {
    "mocov2": (2, VIT),
    "mocov2, one view": (4, {**VIT, "pretrain__symmetric": False, "pretrain__batch_negatives": False}),
    "mocov2, passes are groups": (2, {"pretrain__bn_splits": 4}),
    "mocov2, passes hold groups": (4, {"pretrain__bn_splits": 4}),
    "densecl": (2, {"pretrain__method": "densecl", "pretrain__bn_splits": 4}),
    "swav": (2, {**VIT, "pretrain__method": "swav"}),
    "swav, passes are groups": (4, {"pretrain__method": "swav", "pretrain__bn_splits": 2}),
}
BALANCED = {"train__pixel_loss__balance": "frequency", "train__image_loss__balance": "inverse"}
TRAINING: dict[str, tuple[int, dict[str, Any]]] = {
    "weighted": (2, {**BALANCED, "train__image_loss__label_smoothing": 0.1}),
    "all views": (4, {"train__image_loss__views": "all"}),
    "pooled": (2, {**BALANCED, "train__image_loss__views": "pooled"}),
    "without guidance": (4, {"train__image_loss__weight": 0.0}),
}


def _results(stage: Any, argv: list[str]) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    stage.main(argv)
    weights = load_file("out")
    return pd.read_csv("h.csv"), {name: one for name, one in weights.items() if _is_learnt(name)}


def _is_learnt(name: str) -> bool:
    """Running statistics of batch norm move once for each pass, and so differ."""
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_in_passes_gives_the_weights_of_the_whole_batch(
    bench: Any, in_float64: None, name: str
) -> None:
    size, changes = PRETRAINING[name]
    bench.params(**changes)
    history, weights = _results(pretrain, PRETRAIN)
    bench.params(**changes, pretrain__micro_batch=size)
    found, in_passes = _results(pretrain, PRETRAIN)
    pd.testing.assert_frame_equal(found, history, rtol=1e-6)
    # Up to 5e-7 of a tensor's length was seen, with AVX-512; a lost pass or a wrong scale makes far more.
    assert_near(in_passes, weights, 4e-6)


@pytest.mark.parametrize("name", TRAINING)
def test_training_in_passes_gives_the_weights_of_the_whole_batch(
    bench: Any, in_float64: None, name: str
) -> None:
    size, changes = TRAINING[name]
    changes = {**changes, "train__batch_size": 8, "train__freeze": "batch_norm"}
    bench.write_backbone()
    bench.write_kept_views()
    bench.params(**changes)
    history, weights = _results(train, TRAIN)
    bench.params(**changes, train__micro_batch=size)
    found, in_passes = _results(train, TRAIN)
    pd.testing.assert_frame_equal(found, history, rtol=1e-6)
    assert_near(in_passes, weights, 1e-6)


@pytest.mark.parametrize("freeze", ["batch_norm", "backbone"])
def test_frozen_statistics_are_those_of_the_backbone(bench: Any, freeze: str) -> None:
    bench.write_backbone()
    bench.write_kept_views()
    bench.params(train__freeze=freeze, train__epochs=1)
    train.main(TRAIN)
    trained, given = load_file("out"), load_file("backbone.safetensors")
    names = [name for name in given if "running_" in name]
    assert len(names) == 40  # two of each of the 20 batch norms of a ResNet-18
    for name in names:
        assert torch.equal(trained[f"backbone.{name}"], given[name]), name


def test_batch_norm_takes_the_statistics_of_each_pass(bench: Any, in_float64: None) -> None:
    bench.write_backbone()
    bench.write_kept_views()
    losses = []
    for size in (0, 2):
        bench.params(train__micro_batch=size, train__epochs=1)
        history, _ = _results(train, TRAIN)
        losses.append(history["loss"][0])
    assert losses[1] != pytest.approx(losses[0], rel=1e-6)
    assert losses[1] == pytest.approx(losses[0], rel=0.3)


# PiCIE counts its assignments before the steps; those that were kept must be those of a resumed run.
COUNTED = {
    "train__clustering__kmeans": "minibatch",
    "train__clustering__assign_batch_norm": "batch",
    "train__pixel_loss__balance": "frequency",
}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [(pretrain, {}), (train, {}), (train, COUNTED)],
    ids=["pretrain", "train", "counted"],
)
def test_a_run_in_passes_that_was_interrupted_ends_with_the_same_bytes(
    bench: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: Any,
    changes: dict[str, Any],
) -> None:
    bench.write_backbone()
    bench.write_kept_views()
    bench.params(pretrain__micro_batch=4, train__micro_batch=2, **changes)
    argv = PRETRAIN if stage is pretrain else TRAIN
    stage.main(argv)
    outputs = ("out", "h.csv", "m.json")
    uninterrupted = bench.hashes(*outputs)
    for path in outputs:
        Path(path).unlink()
    bench.interrupt(stage.main, argv, 3, monkeypatch)  # in the middle of an epoch
    capsys.readouterr()
    stage.main(argv)
    assert "resuming from the state in" in capsys.readouterr().out
    assert bench.hashes(*outputs) == uninterrupted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train__micro_batch": 3},
            "train.micro_batch: 3 does not divide batch_size 4 into passes of at least two images; "
            "set a divisor",
        ),
        ({"pretrain__micro_batch": 1}, "pretrain.micro_batch: 1 does not divide batch_size 8 into passes"),
        (
            {"pretrain__micro_batch": 4, "pretrain__method": "slotcon"},
            "pretrain.micro_batch: 4 is not possible with method: slotcon, whose predictor sees the slots "
            "of the whole batch; set it to 0",
        ),
    ],
    ids=str,
)
def test_passes_that_cannot_be(bench: Any, changes: dict[str, Any], message: str) -> None:
    bench.write_backbone()
    bench.write_kept_views()
    bench.params(**changes)
    stage, argv = (pretrain, PRETRAIN) if message.startswith("pretrain") else (train, TRAIN)
    assert message in bench.fault(stage.main, argv)
