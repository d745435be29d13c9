"""The measuring itself: what is compared is the same work, and a probe finds what is there to be found."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from stages.dataset.truth import Truth, write_classes
from stages.postprocessing.pixel_blocks import appearance_features, pair_blocks
from stages.segmenter.network import Segmenter
from stages.settings.schema import Params
from tests.bench import __main__, kernels, pixels, precision, pretraining, reading, segmenting, training
from tests.bench.interleaved import Comparison, compare
from tests.bench.lines import Line
from tests.bench.probe import presence_precision, scene_accuracy
from tests.datasets import read_preset

CPU = torch.device("cpu")


def test_goodput_is_the_bare_work_by_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each turn takes two readings for each kind: 0 to 4 s for the whole, then 3 s for the bare work.
    clock = iter(np.cumsum([0, 4, 0, 3] * 3).tolist())
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = compare(lambda: None, lambda: None, turns=2, device=torch.device("cpu"))
    assert found == (4, 3, 0.75)


def test_on_a_gpu_a_kind_of_step_is_a_graph_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made twice, then captured and checked at its third time; each takes longer than the graph."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    spent = iter([9, 9, 20, 4, 4])
    elapsed = [0.0]

    def work() -> None:
        elapsed[0] += next(spent)

    monkeypatch.setattr("time.perf_counter", lambda: elapsed[0])
    found = compare(work, lambda: None, turns=2, device=torch.device("cuda"))
    assert found.seconds == 4


@pytest.mark.parametrize("method", pretraining.METHODS)
def test_pretraining_is_measured(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(pretraining, "METHODS", (method,))
    monkeypatch.setattr(pretraining, "NUM_STEPS", {"cpu": 1})
    monkeypatch.setitem(pretraining.SETUPS, "cpu", pretraining._published("resnet18", 32, 40, 4, "float32"))
    line = next(pretraining.measure(CPU, turns=1))
    assert line.what == f"pretraining {method}, resnet18 of width 64, 32 px, batch 4, float32: goodput"
    loop, bare = _figures(line, "images/s")
    assert line.ratio == pytest.approx(loop / bare, rel=0.1)


@pytest.mark.parametrize(
    ("module", "work"), [(pretraining, "pretraining, demo, mocov2"), (training, "training, demo")]
)
def test_a_step_of_the_demo_is_measured(monkeypatch: pytest.MonkeyPatch, module: Any, work: str) -> None:
    preset = _small_demo()
    monkeypatch.setattr(module, "read_preset", lambda name: preset)
    monkeypatch.setattr(pretraining, "NUM_STEPS", {"cpu": 1})
    monkeypatch.setattr(training, "DEMO_STEPS", 1)
    line = module.step_of(preset, CPU, 1, False, ", without CUDA graphs")
    sizes = "32 px, batch 4, float32, without CUDA graphs"
    assert line.what == f"a step of {work}, resnet18 of width 16, {sizes}"
    whole, bare = _figures(line, "ms")
    assert line.ratio == pytest.approx(bare / whole, rel=0.1)


def test_precisions_are_measured_on_a_gpu_and_leave_the_arithmetic_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert list(precision.measure(CPU, 1)) == []
    seen = []
    for module in (pretraining, training):
        monkeypatch.setattr(
            module, "step_of", lambda params, *_: seen.append(torch.backends.cudnn.allow_tf32)
        )
    monkeypatch.setitem(precision.KINDS, "cpu", (("float32", True), ("tf32", False)))
    assert len(list(precision.measure(CPU, 1))) == 4
    assert seen == [False, False, True, True]
    assert not torch.backends.cudnn.allow_tf32
    assert torch.are_deterministic_algorithms_enabled()


def _figures(line: Line, unit: str) -> tuple[float, float]:
    here, beside = line.here, line.beside.removeprefix("bare network ")
    assert here.endswith(unit)
    assert beside.endswith(unit)
    return float(here.split()[0]), float(beside.split()[0])


def _small_demo(kind: str | None = None) -> Params:
    """The demo at a side of 32 px and in batches of 4 images."""
    whole = read_preset("demo", kind)
    small = {"batch_size": 4, "epochs": 1}
    changes: dict[str, Any] = {"size_px": 32, "global_k": 3, "pixel_k": 3}
    changes["prepare"] = whole.prepare.model_copy(update={"train_px": 40})
    changes["pretrain"] = whole.pretrain.model_copy(update={**small, "image_px": 32, "queue_size": 4})
    guidance = whole.train.image_loss.model_copy(update={"view_px": 32})
    changes["train"] = whole.train.model_copy(update={**small, "image_loss": guidance})
    return whole.model_copy(update=changes)


@pytest.mark.parametrize("compiled", [False, True])
def test_epochs_of_training_are_compared_with_their_bare_passes(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    asked = []

    def epochs(params: Params, count: int, device: torch.device, turns: int) -> Comparison:
        asked.append((params.train.clustering.kmeans, params.precision, params.compile, count, turns))
        return Comparison(seconds=2.0, bare_seconds=1.0, goodput=0.5)

    step = Line("a step", "1 ms")
    monkeypatch.setattr(training, "compare_epochs", epochs)
    monkeypatch.setattr(training, "step_of", lambda *_: step)
    *lines, last = training.measure(CPU, 2, compiled=compiled)
    expected = [("sample", "float32", False), ("sample", "bfloat16", False), ("minibatch", "float32", False)]
    expected += [("sample", "float32", True)] if compiled else []
    assert asked == [(*one, 64, 2) for one in expected]
    assert last == step
    assert {line.here for line in lines} == {"32.0 images/s"}
    assert {(line.beside, line.ratio) for line in lines} == {("bare network 64.0 images/s", 0.5)}


@pytest.mark.parametrize(("kind", "passes"), [("ours", 2 * 2 + 2 * 2 + 1), ("picie", 2 * 2 + 2 * 2 + 1)])
def test_the_bare_work_has_the_passes_of_an_epoch(
    monkeypatch: pytest.MonkeyPatch, kind: str, passes: int
) -> None:
    """Counted as the batches that the network sees in an epoch of two; guidance classifies once a step.

    PiCIE counts all pixels, and on a CPU these assignments are those of the steps.
    """
    params, calls = _small_demo(kind), []
    forward = Segmenter.forward

    def counting(network: Segmenter, image: Any, colors: Any = None, num_batches: int = 1) -> torch.Tensor:
        calls.extend([torch.is_grad_enabled()] * num_batches)
        return forward(network, image, colors, num_batches)

    monkeypatch.setattr(Segmenter, "forward", counting)
    monkeypatch.setattr(training, "compare", lambda whole, bare, **_: [one() for one in (whole, bare)])
    done: list[int] = []
    monkeypatch.setattr(training, "_bare", lambda *_: lambda frozen, steps: done.extend((frozen, steps)))
    training.compare_epochs(params, 8, CPU, turns=1)
    assert done == [passes, 2]
    assert calls.count(False) == passes
    assert calls.count(True) == 2 * 3


def test_the_picture_of_the_crf_has_as_many_near_pairs_as_photographs() -> None:
    refine = read_preset(kernels.PAPER).refine
    picture = torch.from_numpy(kernels.clouds(320))
    from stages.postprocessing.fused_crf import BLOCK, SMALLEST_WEIGHT  # needs Triton

    features = appearance_features(picture, refine.appearance_px, refine.appearance_color)
    pairs = pair_blocks(features, BLOCK, SMALLEST_WEIGHT)
    assert 0.11 < len(pairs.partners) / len(pairs.schedule) ** 2 < 0.26


def test_kernels_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _small_demo("picie")
    few = whole.train.clustering.model_copy(update={"sample_pixels": 100, "iterations": 2})
    small = whole.model_copy(update={"train": whole.train.model_copy(update={"clustering": few})})
    monkeypatch.setattr(kernels, "read_preset", lambda *_: small)
    sampled, minibatch = kernels.clustering(CPU, 1)
    assert sampled.what.startswith(
        "k-means over a sample, 100 points of 128 features, 3 clusters, 2 iterations"
    )
    assert minibatch.what.startswith("mini-batch k-means over all pixels (PiCIE), 49,629 images")
    (crf,) = kernels.crf(CPU, 1)
    for line, unit in ((sampled, "s"), (minibatch, "s"), (crf, "images/s")):
        value, found = line.here.split()
        assert found == unit
        assert float(value) >= 0
        assert (line.beside, line.ratio) == ("-", None)


def test_reading_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "SIDE", 32)
    monkeypatch.setattr(reading, "NUM_IMAGES", 64)
    (line,) = reading.measure(CPU, 1)
    assert line.what == "reading images of 32 px in random order, batch 64, from the disk of data/"
    from_disk, from_memory = float(line.here.split()[0]), float(line.beside.split()[2])
    assert min(from_disk, from_memory) > 0
    assert line.ratio == pytest.approx(from_disk / from_memory, rel=0.1)
    assert not list(Path("data").iterdir())


def test_segmenting_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenting, "SIZE", (400, 300))
    monkeypatch.setitem(segmenting.NUM_PHOTOGRAPHS, "cpu", 2)
    (line,) = segmenting.measure(CPU, 1)
    assert line.what == "segment, photographs of 0 megapixels, preset folder"
    assert float(line.here.removesuffix(" images/s")) > 0
    assert line.ratio is None


def test_the_output_is_one_table_with_a_head(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {
        "first": lambda *_, **__: [Line("a", "1 s")],
        "second": lambda *_, **__: [Line("b", "2", "3", 0.5)],
    }
    monkeypatch.setattr(__main__, "SECTIONS", sections)
    __main__.main(["--device", "cpu"])
    *head, first, second = capsys.readouterr().out.splitlines()
    assert head[0].startswith("Machine: cpu")
    assert f"torch {torch.__version__.partition('+')[0]}" in head[1]
    assert head[2:] == ["", "| what | measured | beside it | ratio |", "| --- | ---: | ---: | ---: |"]
    assert (first, second) == ("| a | 1 s | - | - |", "| b | 2 | 3 | 0.50 |")


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
