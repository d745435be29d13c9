"""`pretrain` in two phases: MoCo v2, then a dense method from its backbone."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages import pretrain
from stages.core.artefacts import read_metrics

OUTPUTS = ("backbone.safetensors", "history.csv", "pretrain.json")
ARGV = ["--images", "images/train", "--out", OUTPUTS[0], "--history", OUTPUTS[1], "--metrics", OUTPUTS[2]]


@pytest.mark.parametrize("method", ["slotcon", "densecl"])
def test_both_phases_give_what_two_runs_give(
    bench: Any, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    bench.params(pretrain__method=method, pretrain__epochs=3, pretrain__dense__mocov2_epochs=2)
    pretrain.main(ARGV)
    backbone, history = bench.hashes(OUTPUTS[0]), pd.read_csv(OUTPUTS[1])
    figures = read_metrics(Path(OUTPUTS[2]))["pretrain"]
    said = capsys.readouterr().out
    assert "pretrain: method mocov2  epochs 2\n" in said
    assert f"pretrain: method {method}  epochs 3\n" in said

    bench.params(pretrain__method="mocov2", pretrain__epochs=2)
    pretrain.main(ARGV)
    first = pd.read_csv(OUTPUTS[1])
    Path(OUTPUTS[0]).rename("first.safetensors")
    bench.params(pretrain__method=method, pretrain__epochs=3, pretrain__init="first.safetensors")
    pretrain.main(ARGV)
    second = pd.read_csv(OUTPUTS[1])
    assert bench.hashes(OUTPUTS[0]) == backbone
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]
    both = pd.concat([first, second.assign(epoch=second["epoch"] + 2)], ignore_index=True)
    pd.testing.assert_frame_equal(history, both)
    alone = read_metrics(Path(OUTPUTS[2]))["pretrain"]
    del alone["init"], alone["environment"], figures["environment"]
    assert figures == alone, "the summary is of the method"


# Two epochs of two batches in each phase; the last batch of a phase may be left to the next one.
@pytest.mark.parametrize("after", [[1], [3], [4, 1], [5], [1, 1, 1, 1, 1]])
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    bench: Any, monkeypatch: pytest.MonkeyPatch, after: list[int]
) -> None:
    bench.params(pretrain__method="slotcon", pretrain__dense__mocov2_epochs=2)
    pretrain.main(ARGV)
    uninterrupted = bench.hashes(*OUTPUTS)
    for saves in after:
        bench.interrupt(pretrain.main, ARGV, saves, monkeypatch)
    pretrain.main(ARGV)
    assert bench.hashes(*OUTPUTS) == uninterrupted
    assert bench.saved_states() == []


@pytest.mark.parametrize(("method", "epochs"), [("mocov2", 2), ("swav", 2), ("none", 2), ("slotcon", 0)])
def test_there_is_one_phase_for_other_methods_and_without_epochs(
    bench: Any, method: str, epochs: int
) -> None:
    bench.params(pretrain__method=method, pretrain__epochs=epochs)
    pretrain.main(ARGV)
    expected = bench.hashes(*OUTPUTS)
    bench.params(pretrain__method=method, pretrain__epochs=epochs, pretrain__dense__mocov2_epochs=2)
    pretrain.main(ARGV)
    assert bench.hashes(*OUTPUTS) == expected


def test_the_queue_of_the_first_phase_has_to_fit(bench: Any) -> None:
    bench.params(pretrain__method="slotcon", pretrain__queue_size=17)  # slotcon has no queue
    pretrain.main(ARGV)
    bench.params(pretrain__method="slotcon", pretrain__queue_size=17, pretrain__dense__mocov2_epochs=1)
    assert "queue_size: 17 is not a multiple of batch_size 8" in bench.fault(pretrain.main, ARGV)
    bench.params(pretrain__method="slotcon", pretrain__queue_size=24, pretrain__dense__mocov2_epochs=1)
    assert "pretrain.queue_size: 24 is more than the 16 training images" in bench.fault(pretrain.main, ARGV)
