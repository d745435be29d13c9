"""Every stage through its command line on a GPU: it runs, repeats its bytes, and comes near the CPU."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from stages import cluster, embed, label, predict, pretrain, refine, select_views, train
from tests.datasets import picie

# In the order of the flow: script, arguments, outputs.
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
        ("labels.safetensors",),
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
        ("pixel_centroids.safetensors",),
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
}


@pytest.fixture
def flow(bench: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the whole flow on a device: `flow("cuda", train__epochs=1)`, in the current folder."""
    if device.type != "cuda":
        pytest.skip("for a GPU: make test-cuda")
    available = torch.cuda.device_count() > 0

    def run(on: str, **changes: Any) -> dict[str, str]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available and on == "cuda")
        bench.params(device=on, **changes)
        for stage, arguments, _ in FLOW.values():
            stage.main(arguments.split())
        return bench.hashes(*(path for _, _, outputs in FLOW.values() for path in outputs))

    return run


@pytest.mark.parametrize("method", ["mocov2", "swav", "densecl", "slotcon"])
@pytest.mark.parametrize("base", [{}, picie()], ids=["ours", "picie"])
def test_every_stage_runs_and_repeats_its_bytes(flow: Any, method: str, base: dict[str, Any]) -> None:
    changes = {"pretrain__method": method, **base}
    assert flow("cuda", **changes) == flow("cuda", **changes)


@pytest.mark.parametrize("method", ["mocov2", "swav", "densecl"])
def test_steps_from_cuda_graphs_are_those_made_one_by_one(flow: Any, method: str) -> None:
    """Enough epochs that most steps are replayed; a graph repeats the kernels of a step."""
    changes = {"pretrain__method": method, "pretrain__epochs": 4, "train__epochs": 4}
    plain, captured = flow("cuda", **changes), flow("cuda", runtime__cuda_graph=True, **changes)
    assert captured == plain


def test_the_first_losses_are_those_of_the_cpu(flow: Any) -> None:
    """Of `train` from one untrained backbone: k-means starts from the same points on both."""
    losses = {}
    for on in ("cpu", "cuda"):
        flow(on, pretrain__lr=1e-6)  # so small that both runs see the weights that were drawn
        losses[on, "pretrain"] = pd.read_csv("pretrain.csv")["loss"][0]
        flow(on, pretrain__epochs=0, train__epochs=1)
        losses[on, "train"] = pd.read_csv("train.csv")["loss"][0]
    for stage in ("pretrain", "train"):
        assert losses["cuda", stage] == pytest.approx(losses["cpu", stage], rel=0.05), stage


def test_embeddings_of_one_backbone_are_those_of_the_cpu(flow: Any) -> None:
    flow("cpu", pretrain__epochs=0)
    before = np.load("embeddings.npy")
    flow("cuda", pretrain__epochs=0)
    np.testing.assert_allclose(np.load("embeddings.npy"), before, rtol=1e-2, atol=1e-2)


def test_bfloat16_comes_near_float32(flow: Any) -> None:
    flow("cuda", pretrain__epochs=0, train__epochs=1)
    plain = np.load("embeddings.npy")
    flow("cuda", pretrain__epochs=0, train__epochs=1, precision="bfloat16")
    found = np.load("embeddings.npy")
    cosine = (plain * found).sum(2) / np.linalg.norm(plain, axis=2) / np.linalg.norm(found, axis=2)
    assert cosine.min() > 0.99
    assert all(torch.isfinite(value).all() for value in load_file(Path("segmenter.safetensors")).values())
