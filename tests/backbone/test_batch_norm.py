"""Batch norm over several processes: what torch's own gives for the whole batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stages.backbone.batch_norm import set_groups_of_pass, split_batch_norms
from tests.datasets import REPOSITORY
from tests.tensors import assert_near

# Shape of the whole batch, and the share of each process.
CASES: list[tuple[tuple[int, ...], list[int]]] = [
    ((9, 3), [2, 4, 3]),
    ((8, 3, 5, 4), [3, 3, 2]),
    ((6, 3, 2, 2), [4, 0, 2]),
]
NUM_PROCESSES = 3


def test_shares_are_normalised_as_the_whole_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given: list[dict[str, Any]] = []
    for shape, sizes in CASES:
        x, sent = (torch.randn(shape, dtype=torch.float64) * 3 + 20 for _ in range(2))
        norm = nn.BatchNorm2d(3).double()
        nn.init.normal_(norm.weight)
        given.append({"norm": norm, "x": x, "sent": sent, "sizes": sizes})
    torch.save(given, tmp_path / "given.pt")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_PROCESSES)]
    command += ["--log-dir", os.devnull, "-m"]
    ended = subprocess.run(
        [sys.executable, *command, "tests.backbone.batch_norm_in_processes", "given.pt"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    written = [torch.load(tmp_path / f"{rank}.pt") for rank in range(NUM_PROCESSES)]
    for case, *shares in zip(given, *written, strict=True):
        _compare(case, shares)


def _compare(case: dict[str, Any], shares: list[dict[str, Any]]) -> None:
    x = case["x"].requires_grad_()
    whole = (nn.BatchNorm2d(3) if x.ndim == 4 else nn.BatchNorm1d(3)).double()
    whole.load_state_dict(case["norm"].state_dict())
    out = whole(x)
    out.backward(case["sent"])
    gradients = {f"{name}.grad": value.grad for name, value in whole.named_parameters()}
    found = {name: torch.cat([share[name] for share in shares]) for name in ("out", "x")}
    summed = {name: torch.stack([share[name] for share in shares]).sum(0) for name in gradients}
    assert_near({**found, **summed}, {"out": out.detach(), "x": x.grad, **gradients}, 1e-12)
    for share in shares:
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(share[name], whole.state_dict()[name], rtol=1e-12, atol=1e-12)
        assert share["num_batches_tracked"] == 1
        assert share["collectives"] == 2, "one in each direction"


@pytest.mark.parametrize(
    ("splits", "num_passes", "groups"),
    [(1, 3, 1), (4, 2, 2), (4, 4, 1), (2, 4, 1), (8, 3, 1), (10, 4, 1), (9, 2, 1)],
)
def test_passes_hold_whole_groups_or_are_groups_themselves(splits: int, num_passes: int, groups: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    split_batch_norms(network, splits)
    set_groups_of_pass(network, splits, num_passes)
    assert network[1].splits == groups
