"""Two processes on a GPU: what one computes there. The usual suite has the same on a CPU, in float64."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.datasets import REPOSITORY, picie
from tests.stages.sharing_one_device import run_all

# At the rate of other tests (0.06) a second step makes rounding a thousand times as large.
SLOW = {"pretrain__epochs": 1, "pretrain__lr": 0.001, "train__epochs": 1}
# All methods; batch norm over both processes and in groups of their own; both bases; an uneven last batch.
PRETRAINED: dict[str, dict[str, Any]] = {
    "mocov2": {"pretrain__bn_splits": 1},
    "mocov2_in_groups": {"pretrain__bn_splits": 2},
    "swav": {"pretrain__method": "swav", "pretrain__bn_splits": 1},
    "densecl": {"pretrain__method": "densecl", "pretrain__bn_splits": 1},
    "slotcon": {"pretrain__method": "slotcon"},
}
TRAINED: dict[str, dict[str, Any]] = {
    "ours": {},
    "weighted": {"train__pixel_loss__balance": "frequency", "train__image_loss__balance": "inverse"},
    "picie": picie(),
    "bfloat16": {"precision": "bfloat16"},
    "passes": {"train__batch_size": 8, "train__micro_batch": 2, "train__freeze": "batch_norm"},
}
LINES = {
    "pretrain": "--images images/train --out {0}.safetensors --history {0}.csv --metrics {0}.json",
    "embed": "--images images/train --backbone backbone.safetensors --out {0}.npy",
    "train": (
        "--images images/train --views kept_views.npy --label-metrics label.json "
        "--backbone backbone.safetensors --out {0}.safetensors --history {0}.csv --metrics {0}.json"
    ),
    "predict": (
        "--images images/val --segmenter segmenter.safetensors --centroids pixel_centroids.safetensors "
        "--out {0}.npy"
    ),
}


@pytest.mark.gpu
def test_two_processes_on_a_gpu_give_what_one_gives(
    bench: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device.type == "cuda")  # `bench` hides a GPU
    bench.write_backbone()
    bench.write_kept_views()
    bench.write_segmenter()
    bench.write_centroids()
    runs = [("pretrain", name, changes) for name, changes in PRETRAINED.items()]
    runs += [("train", name, changes) for name, changes in TRAINED.items()]
    runs += [("embed", "embeddings", {}), ("predict", "predictions", {})]
    lines = []
    for stage, name, changes in runs:
        how = {"runtime__cuda_graph": False, "runtime__timeout_seconds": 120}
        bench.params(device=device.type, **how, **SLOW, **changes)
        Path("params.yaml").rename(f"{name}.yaml")
        lines.append(f"{stage} --params {name}.yaml {LINES[stage].format(name)}")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--log-dir", os.devnull),
            *("--nproc-per-node", "2", "-m", "tests.stages.sharing_one_device", *lines),
        ],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch 1/1") == len(PRETRAINED) + len(TRAINED), "one process speaks for both"
    assert bench.saved_states() == []
    shared = {name: _read(name) for _, name, _ in runs}
    run_all(lines)
    for stage, name, _ in runs:
        if name == "bfloat16":  # rounding to 8 bits decides which pixels change clusters
            losses = [column for column in shared[name] if "loss" in column]
            np.testing.assert_allclose(shared[name][losses], _read(name)[losses], rtol=0.02)
        elif stage in ("pretrain", "train"):
            pd.testing.assert_frame_equal(shared[name], _read(name), rtol=1e-3, obj=name)
        else:
            np.testing.assert_array_equal(shared[name], _read(name))


def _read(name: str) -> Any:
    """What a stage has written: losses and figures of each epoch, or an array."""
    return pd.read_csv(f"{name}.csv") if Path(f"{name}.csv").exists() else np.load(f"{name}.npy")
