"""`train` and `cluster` in two processes: what one would have computed."""

import os
import subprocess
import sys
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from tests.datasets import REPOSITORY, picie
from tests.stages.train_in_float64 import run_all
from tests.tensors import assert_near

# Weighted losses whose sums are not shared evenly; PiCIE's clustering over stored labels; pooled guidance.
CASES: dict[str, dict[str, Any]] = {
    "weighted": {"train__pixel_loss__balance": "frequency", "train__image_loss__balance": "inverse"},
    "picie": picie(),
    "auto": {"train__image_loss__weight": "auto"},
    "merged": {**picie(), "train__clustering__batches_per_update": 2},
    "passes": {"train__batch_size": 8, "train__micro_batch": 2, "train__freeze": "batch_norm"},
    "pooled": {"train__image_loss__views": "pooled", "train__context__image": "clean"},
}


def test_two_processes_give_the_losses_weights_and_clusters_of_one(bench: Any, in_float64: None) -> None:
    bench.write_backbone()
    bench.write_kept_views()
    bench.write_segmenter()
    for name, changes in CASES.items():
        bench.params(**{"train__epochs": 1, "cluster__batch_norm": "batch", **changes})
        (bench.folder / "params.yaml").rename(bench.folder / name)
    run_all(CASES)
    suffixes = (".safetensors", ".centroids")
    alone = {name + suffix: load_file(name + suffix) for name in CASES for suffix in suffixes}
    figures = {name: pd.read_csv(f"{name}.csv") for name in CASES}
    program = ["--nproc-per-node", "2", "-m", "tests.stages.train_in_float64", *CASES]
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--log-dir", os.devnull, *program],
        cwd=bench.folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch 1/1") == len(CASES), "one process speaks for both"
    for name, history in figures.items():
        pd.testing.assert_frame_equal(pd.read_csv(f"{name}.csv"), history, rtol=1e-5)
    for path, tensors in alone.items():
        assert_near(load_file(path), tensors, 1e-5)
    assert bench.saved_states() == []
