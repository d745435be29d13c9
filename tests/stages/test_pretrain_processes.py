"""`pretrain` in several processes: what one would have computed, and nothing beside it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file

from stages import pretrain
from stages.core import distributed
from tests.datasets import REPOSITORY
from tests.stages.pretrain_in_float64 import run_all
from tests.tensors import assert_near

# Sync batch norm, groups of its own for each process, and the other methods.
CASES: dict[str, dict[str, Any]] = {
    "one_group": {"pretrain__bn_splits": 1},
    "two_groups": {"pretrain__bn_splits": 2},
    "swav": {"pretrain__method": "swav", "pretrain__bn_splits": 1},
    "densecl": {"pretrain__method": "densecl", "pretrain__bn_splits": 1},
    "densecl_in_groups": {"pretrain__method": "densecl", "pretrain__bn_splits": 2},
    "slotcon": {"pretrain__method": "slotcon"},
    "phases": {"pretrain__method": "slotcon", "pretrain__dense__mocov2_epochs": 2, "pretrain__bn_splits": 1},
    "passes": {
        **{"backbone__arch": "vit_small", "backbone__width": 2, "pretrain__head_batch_norm": False},
        "pretrain__micro_batch": 2,
    },
}

QUEUES_OF_9 = {"pretrain__queue_size": 9, "pretrain__swav__queue_size": 9}


def test_two_processes_give_the_losses_and_weights_of_one(bench: Any, in_float64: None) -> None:
    for name, changes in CASES.items():
        bench.params(**changes)
        Path("params.yaml").rename(name)
    run_all(CASES)
    alone = {name: (pd.read_csv(f"{name}.csv"), load_file(f"{name}.safetensors")) for name in CASES}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    program = ["--nproc-per-node", "2", "-m", "tests.stages.pretrain_in_float64", *CASES]
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--log-dir", os.devnull, *program],
        cwd=bench.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    log = ended.stdout
    assert log.count("epoch 2/2") == len(CASES) + 1, "one process speaks for both; `phases` has two ends"
    for name, (history, weights) in alone.items():
        pd.testing.assert_frame_equal(pd.read_csv(f"{name}.csv"), history, rtol=1e-5)
        assert history["loss"].iloc[0] != pytest.approx(history["loss"].iloc[1], rel=1e-3), "it learns"
        assert_near(load_file(f"{name}.safetensors"), weights, 1e-6)
    assert bench.saved_states() == []


def test_a_share_that_cannot_be_cut_into_passes_is_named(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.params(pretrain__micro_batch=8)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    argv = ["--images", "images/train", "--out", "b", "--history", "h", "--metrics", "m"]
    assert bench.fault(pretrain.main, argv) == (
        "params.yaml: pretrain.micro_batch: the 4 images of each of 2 processes cannot be cut into passes "
        "of 8; use a divisor, or 0"
    )


def test_processes_that_are_started_end_with_the_fault_of_the_settings(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(Path("temporary").absolute()))
    bench.params(runtime__nproc=2, pretrain__batch_size=9, pretrain__bn_splits=1, **QUEUES_OF_9)
    argv = ["--images", "images/train", "--out", "b", "--history", "h", "--metrics", "m"]
    assert re.search(
        r"^error: process [01] on \S+: params\.yaml: pretrain\.batch_size: 9 images cannot be split evenly "
        r"over 2 processes; use a multiple of the number of processes$",
        bench.command_fault("pretrain", argv),
        re.MULTILINE,
    )
    assert not Path("b").exists()
    assert not list(Path("temporary").glob("torchelastic_*")), "torch's folders for logs"
