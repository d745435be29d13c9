"""The measuring itself: what is compared is the same work, and a probe finds what is there to be found."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from stages.dataset.truth import Truth, write_classes
from tests.bench import pixels, pretraining, training
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


@pytest.fixture
def taught(bench: Any) -> Any:
    """Flat images: class 0 is dark, class 1 bright, both are taught and asked, and class 2 occurs nowhere."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        side = np.load(f"images/{split}/images.npy", mmap_mode="r").shape[1]
        classes = np.broadcast_to((np.arange(count) // 2 % 2)[:, None, None], (count, side, side))
        shades = np.repeat((40 + 180 * classes)[..., None], 3, 3) + rng.integers(-9, 9, (*classes.shape, 1))
        np.save(f"images/{split}/images.npy", shades.astype(np.uint8))
    Path("truth").mkdir(exist_ok=True)
    np.save("truth/val.npy", classes.astype(np.uint8))
    write_classes(Path("truth"), ("dark", "bright", "nowhere"))
    bench.write_backbone()
    return bench


def test_pixels_of_a_backbone_are_scored(taught: Any, capsys: pytest.CaptureFixture[str]) -> None:
    taught.params(pixel_k=2)
    pixels.main(["--images", "images", "--truth", "truth", "given=backbone.safetensors"])
    head, _, untrained, given = capsys.readouterr().out.splitlines()
    assert head.count("accuracy") == 3
    rows = [re.fullmatch(r"\| (\w+) \| (.*) \|", line) for line in (untrained, given)]
    assert [row[1] for row in rows if row] == ["untrained", "given"]
    for row in rows:
        accuracy, _, *probed = (float(cell) for cell in row[2].split(" | "))
        assert accuracy >= 50, "two clusters are matched to two classes of equal size"
        assert probed == [100] * 4, "dark and bright images are told apart by any features"


def test_k_means_finds_separate_directions(bench: Any) -> None:
    bench.params(pixel_k=3)
    rng = np.random.default_rng(0)
    truth = Truth(("a", "b", "c"), ("", "", ""), rng.integers(0, 3, (4, 8, 8)).astype(np.uint8))
    maps = np.eye(3)[truth.maps].transpose(0, 3, 1, 2) + rng.normal(0, 0.05, (4, 3, 8, 8))
    fitted = np.eye(3)[rng.integers(0, 3, 200)] + rng.normal(0, 0.05, (200, 3))
    fitted /= np.linalg.norm(fitted, axis=1, keepdims=True)
    given = pixels.cluster_scores(fitted.astype(np.float32), maps, bench.read(*pixels.KEYS))
    assert pixels.scored(given, truth, is_matched=True) == "100.0 | 100.0"


def test_a_class_that_no_probe_was_taught_is_never_answered() -> None:
    truth = Truth(("a", "b", "c"), ("", "", ""), np.array([[[0, 2]] * 2] * 4, np.uint8))
    maps = np.eye(3, dtype=np.float32)[truth.maps].transpose(0, 3, 1, 2)
    near = KNeighborsClassifier(1)
    given = pixels.probe_scores(near, maps, truth, seed=0)
    assert given.shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(given.argmax(1), truth.maps[1::2])
    assert not given[:, 1].any()
    asked = Truth(truth.class_names, truth.class_kinds, truth.maps[1::2])
    assert pixels.scored(given, asked, is_matched=False) == "100.0 | 100.0"


def test_clusters_are_matched_and_classes_are_not() -> None:
    truth = Truth(("a", "b"), ("", ""), np.array([[[0, 1], [1, 1]]], np.uint8))
    swapped = np.eye(2)[1 - truth.maps].transpose(0, 3, 1, 2)
    assert pixels.scored(swapped, truth, is_matched=True) == "100.0 | 100.0"
    assert pixels.scored(swapped, truth, is_matched=False) == "0.0 | 0.0"
