"""The measuring itself: what is compared is the same work, and a probe finds what is there to be found."""

import re

import numpy as np
import pytest
import torch

from tests.bench import pretraining, training
from tests.bench.interleaved import compare
from tests.bench.probe import presence_precision, scene_accuracy


def test_goodput_is_the_bare_work_by_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each turn takes two readings for each kind: 0 to 4 s for the whole, then 3 s for the bare work.
    clock = iter(np.cumsum([0, 4, 0, 3] * 3).tolist())
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = compare(lambda: None, lambda: None, turns=2, device=torch.device("cpu"))
    assert found == (4, 3, 0.75)


@pytest.mark.parametrize("method", ["mocov2", "swav", "densecl", "slotcon"])
def test_pretraining_is_measured(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setitem(pretraining.SETUPS, "cpu", ("resnet18", 32, 40, 4, "float32"))
    line = pretraining._measure(method, torch.device("cpu"), turns=1, compiled=False)
    found = re.fullmatch(
        rf"pretraining {method} resnet18 32 px, batch 4, float32: loop ([\d.]+) images/s, "
        r"bare network ([\d.]+) images/s, goodput ([\d.]+)",
        line,
    )
    assert found
    loop, bare, goodput = map(float, found.groups())
    assert goodput == pytest.approx(loop / bare, rel=0.1)


@pytest.mark.parametrize("compiled", [False, True])
def test_epochs_of_training_are_compared_with_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    took = {("ours", "float32", False): 2.0, ("ours", "bfloat16", False): 1.0}
    took |= {("picie", "float32", False): 6.0}
    took |= {("ours", "float32", True): 3.0} if compiled else {}

    def epoch(images: object, kind: str, preset: object, precision: str, **how: bool) -> training.Clock:
        clock = training.Clock()
        clock.spent["training"] = np.array([took[kind, precision, how.get("compiled", False)], 0.5])
        return clock

    monkeypatch.setattr(training, "bench_epoch", epoch)
    lines = list(training.measure(torch.device("cpu"), 2, compiled=compiled))
    ratios = [line.partition("an epoch of ")[2] for line in lines if line.startswith("training on cpu")]
    assert ratios == [
        "'picie' takes 3.00 times one of 'ours'",
        "'ours in bfloat16' takes 0.50 times one of 'ours'",
        *(["'ours compiled' takes 1.50 times one of 'ours'"] if compiled else []),
    ]
    assert sum(line.startswith("ours: 64 images") for line in lines) == 1  # the phases, once for each kind


def test_probes_find_what_features_hold() -> None:
    rng = np.random.default_rng(0)
    scene = np.arange(80) % 8
    told = np.eye(8)[scene] + rng.normal(0, 0.01, (80, 8))
    blind = rng.normal(0, 1, (80, 8))
    present = np.eye(8, dtype=bool)[scene]
    assert scene_accuracy(told, scene) == 1
    assert scene_accuracy(blind, scene) < 0.5
    assert presence_precision(told, present) == pytest.approx(1)
    assert presence_precision(blind, present) < 0.5
