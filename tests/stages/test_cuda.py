"""Each stage that works on a device, by its command line: it runs, repeats its bytes, comes near the CPU.

`make test-cuda` compares a GPU with the CPU. The usual suite leaves out what is marked `gpu`: what takes too
long, and what would compare the CPU with itself. prepare and report use no device.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stages import cluster, embed, evaluate, label, predict, pretrain, refine, select_views, train
from stages.core.artefacts import read_metrics
from stages.postprocessing.gpu_backends import settle
from stages.postprocessing.score_maps import open_scores
from stages.settings.params import load
from stages.tools import segment
from tests.datasets import picie, read_preset, write_image

EVALUATE = (
    "--name {0} --predictions predictions.npy --truth truth {1} --metrics {0}.json "
    "--readings {0}_readings.json --readings-table {0}_readings.csv --per-class {0}_classes.csv "
    "--confusion-table {0}_confusion.csv"
)
# In the order of the flow: script, arguments, outputs that repeat their bytes.
FLOW: dict[str, tuple[ModuleType, str, tuple[str, ...]]] = {
    "pretrain": (
        pretrain,
        "--images images/train --out backbone.safetensors --history pretrain.csv --metrics pretrain.json",
        ("backbone.safetensors", "pretrain.csv"),
    ),
    "embed": (
        embed,
        "--images images/train --backbone backbone.safetensors --out embeddings.npy",
        ("embeddings.npy",),
    ),
    "label": (
        label,
        "--embeddings embeddings.npy --backbone backbone.safetensors --out labels.safetensors "
        "--metrics label.json",
        ("labels.safetensors", "label.json"),
    ),
    "select_views": (
        select_views,
        "--labels labels.safetensors --out kept_views.npy --metrics select_views.json",
        ("kept_views.npy",),
    ),
    "train": (
        train,
        "--images images/train --views kept_views.npy --label-metrics label.json "
        "--backbone backbone.safetensors --out segmenter.safetensors "
        "--history train.csv --metrics train.json",
        ("segmenter.safetensors", "train.csv"),
    ),
    "cluster": (
        cluster,
        "--images images/train --segmenter segmenter.safetensors --out pixel_centroids.safetensors "
        "--metrics cluster.json",
        ("pixel_centroids.safetensors", "cluster.json"),
    ),
    "predict": (
        predict,
        "--images images/val --segmenter segmenter.safetensors --centroids pixel_centroids.safetensors "
        "--out predictions.npy",
        ("predictions.npy",),
    ),
    "refine": (
        refine,
        "--images images/val --predictions predictions.npy --out refined.npy",
        ("refined.npy",),
    ),
    "raw": (evaluate, EVALUATE.format("raw", "--images images"), ("raw.json",)),
    "refined": (evaluate, EVALUATE.format("refined", "--refined refined.npy"), ("refined.json",)),
}
SEGMENT = "photos --model . --params params.yaml --refine"
METHODS = ("mocov2", "swav", "densecl", "slotcon")
BASES = pytest.mark.parametrize(
    "base", [pytest.param({}, id="ours"), pytest.param(picie(), id="picie", marks=pytest.mark.gpu)]
)
SHORT = {"pretrain__epochs": 1, "train__epochs": 1}  # for what a second epoch would not change
# Without learning, all steps compare the same weights. At the rate of these tests (0.06), rounding to
# bfloat16 changes the loss of an epoch of two steps by 2 to 6 % on a CPU, and by 8 % on an H200.
STILL = {"pretrain__lr": 1e-9}
METHOD = pytest.mark.parametrize(
    "method", [METHODS[0], *(pytest.param(name, marks=pytest.mark.gpu) for name in METHODS[1:])]
)


class Flow:
    """The stages, one after the other, in the current folder."""

    def __init__(self, bench: Any, patch: pytest.MonkeyPatch) -> None:
        self._bench, self._patch = bench, patch
        self._changes: Mapping[str, Any] = {}

    def run(
        self, device: torch.device, stages: Sequence[str] = tuple(FLOW), **changes: Any
    ) -> dict[str, str]:
        """Hashes of what the stages wrote; the changes of params.yaml hold from now on."""
        self._changes = changes
        self.on(device)
        for name in stages:
            script, arguments, _ = FLOW[name]
            script.main(arguments.split())
        return self._bench.hashes(*(path for name in stages for path in FLOW[name][2]))

    def again(self, stage: str, device: torch.device, read: Callable[[], Any], **changes: Any) -> Any:
        """What a stage writes here from the same inputs, as `read` reads it; the files stay as they were."""
        _, _, outputs = FLOW[stage]
        before, kept = {path: Path(path).read_bytes() for path in outputs}, self._changes
        self.run(device, [stage], **{**kept, **changes})
        found = read()
        for path, content in before.items():
            Path(path).write_bytes(content)
        self._changes = kept
        return found

    def on(self, device: torch.device, **changes: Any) -> None:
        """Let params.yaml say so, and hide the GPU from what is to run without."""
        self._patch.setattr(torch.cuda, "is_available", lambda: device.type == "cuda")
        self._bench.params(device=str(device), **{**self._changes, **changes})


CPU = torch.device("cpu")


@pytest.fixture
def flow(device: torch.device, bench: Any, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """The flow in a folder of its own; `device` skips the test where it is missing."""
    return Flow(bench, monkeypatch)


def _loss(name: str) -> Callable[[], float]:
    return lambda: float(pd.read_csv(f"{name}.csv")["loss"][0])


def _mean_score(stage: str) -> Callable[[], float]:
    return lambda: float(read_metrics(Path(f"{stage}.json"))[stage]["mean_score"])


def _cosine(found: np.ndarray, expected: np.ndarray, axis: int) -> np.ndarray:
    lengths = np.linalg.norm(found, axis=axis) * np.linalg.norm(expected, axis=axis)
    return (found * expected).sum(axis) / lengths


@METHOD
@BASES
def test_every_stage_runs_and_repeats_its_bytes(
    flow: Flow, device: torch.device, method: str, base: dict[str, Any]
) -> None:
    changes = {"pretrain__method": method, **base}
    assert flow.run(device, **changes) == flow.run(device, **changes)


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "first"), [*((name, 0) for name in METHODS), ("slotcon", 4)])
def test_steps_from_cuda_graphs_are_those_made_one_by_one(
    flow: Flow, device: torch.device, method: str, first: int
) -> None:
    """Enough epochs that most steps are replayed; a graph repeats the kernels of a step."""
    changes = {"pretrain__method": method, "pretrain__epochs": 4, "train__epochs": 4}
    changes["pretrain__dense__mocov2_epochs"] = first
    plain = flow.run(device, runtime__cuda_graph=False, **changes)
    assert flow.run(device, runtime__cuda_graph=True, **changes) == plain


@pytest.mark.gpu
@METHOD
def test_the_first_losses_of_pretraining_are_those_of_the_cpu(
    flow: Flow, device: torch.device, method: str
) -> None:
    flow.run(CPU, ["pretrain"], pretrain__method=method, pretrain__epochs=1)
    expected = _loss("pretrain")()
    found = flow.again("pretrain", device, _loss("pretrain"))
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.gpu
@BASES
def test_from_the_same_files_every_stage_comes_near_the_cpu(
    flow: Flow, device: torch.device, base: dict[str, Any]
) -> None:
    """k-means starts from the same points on both, but may end in another optimum that is as good."""
    flow.run(CPU, **base, **SHORT)
    embeddings = np.load("embeddings.npy")
    found = flow.again("embed", device, lambda: np.load("embeddings.npy"))
    assert _cosine(found, embeddings, 2).min() > 0.999
    for stage in ("label", "cluster"):
        score = _mean_score(stage)
        assert flow.again(stage, device, score) == pytest.approx(score(), rel=0.01), stage
    loss = _loss("train")
    assert flow.again("train", device, loss) == pytest.approx(loss(), rel=0.05)
    scores = np.load("predictions.npy").astype(np.float32)
    found = flow.again("predict", device, lambda: np.load("predictions.npy"))
    np.testing.assert_allclose(found, scores, atol=5e-3)
    refined = np.load("refined.npy")
    for backend in ("cuda", "fused"):
        found = flow.again("refine", device, lambda: np.load("refined.npy"), refine__backend=backend)
        assert (found == refined).mean() > 0.9, backend
    for name in ("raw", "refined"):  # has no device, and no reason to differ
        figures = read_metrics(Path(f"{name}.json"))
        assert flow.again(name, device, lambda name=name: read_metrics(Path(f"{name}.json"))) == figures


def test_the_exact_crf_of_the_predictions_comes_near_pydensecrf(flow: Flow, device: torch.device) -> None:
    """On any device, for the exact kernels run on a CPU too."""
    flow.run(CPU, tuple(FLOW)[:-2], **SHORT)
    settings = load(Path("params.yaml"), "refine").refine
    images = np.load("images/val/images.npy")
    scores = open_scores(Path("predictions.npy"), len(images))
    exact = list(refine.refine_on_gpu(images, scores, range(len(images)), settings, device))
    assert (np.stack(exact) == np.load("refined.npy")).mean() > 0.9


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        pytest.param({"precision": "tf32"}, marks=pytest.mark.gpu),
        pytest.param({"deterministic": False}, marks=pytest.mark.gpu),
        pytest.param({"compile": True}, marks=pytest.mark.gpu),
    ],
    ids=["bfloat16", "tf32", "not deterministic", "compiled"],
)
def test_other_arithmetic_comes_near_float32(
    flow: Flow, device: torch.device, changes: dict[str, Any]
) -> None:
    # A graph is recorded at the third step of a kind, and an epoch of pretraining has two.
    flow.run(device, tuple(FLOW)[:7], pretrain__epochs=3, train__epochs=2)
    for name, rates, near in (("pretrain", STILL, 0.05), ("pretrain", {}, 0.15), ("train", {}, 0.05)):
        expected = flow.again(name, device, _loss(name), **rates) if rates else _loss(name)()
        found = flow.again(name, device, _loss(name), **rates, **changes)
        assert found == pytest.approx(expected, rel=near), (name, rates)
    embeddings = np.load("embeddings.npy")
    found = flow.again("embed", device, lambda: np.load("embeddings.npy"), **changes)
    assert _cosine(found, embeddings, 2).min() > 0.99
    scores = np.load("predictions.npy").astype(np.float32)
    found = flow.again("predict", device, lambda: np.load("predictions.npy"), **changes)
    assert np.abs(found - scores).mean() < 0.02
    trained = flow.again("train", device, lambda: load_file("segmenter.safetensors"), **changes)
    assert all(torch.isfinite(value).all() for value in trained.values())


@pytest.mark.gpu
def test_auto_takes_the_fused_crf(device: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    assert settle(read_preset("cocostuff27").refine, 27, device).backend == "fused"
    assert not capsys.readouterr().err


@pytest.mark.gpu
def test_segmenting_photographs_comes_near_the_cpu(flow: Flow, device: torch.device) -> None:
    flow.run(CPU, tuple(FLOW)[:6], **SHORT)
    rng = np.random.default_rng(0)
    for name, height, width in (("square.png", 32, 32), ("wide.png", 40, 90)):
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        write_image(Path("photos") / name, coarse.repeat(8, 0).repeat(8, 1)[:height, :width])
    for one in (CPU, device):
        flow.on(one)
        segment.main([*SEGMENT.split(), "--out", f"on_{one.type}", "--device", str(one), "--overwrite"])
    given = load(
        Path("params.yaml"), "refine"
    ).refine  # and not what `auto` became, of which a resumed run asks
    assert segment.load(".", device=str(device), refine="params.yaml").crf == given
    for name in ("square", "wide"):
        found, expected = (np.asarray(Image.open(f"on_{one.type}/{name}.png")) for one in (device, CPU))
        assert found.shape == expected.shape
        assert (found == expected).mean() > 0.9, name
