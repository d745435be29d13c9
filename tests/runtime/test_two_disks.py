"""Processes with a disk each: the saved state reaches all of them, and they compare what they work on."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.datasets import REPOSITORY, write_params

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TORCHRUN += ["--log-dir", os.devnull]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def _on_two_disks(
    folder: Path, what: str, seeds: tuple[int, int] = (0, 0), inputs: tuple[str, str] = ("a", "a")
) -> subprocess.CompletedProcess[str]:
    for rank, (seed, content) in enumerate(zip(seeds, inputs, strict=True)):
        disk = folder / f"disk{rank}"
        disk.mkdir()
        write_params(disk / "params.yaml", {"seed": seed})
        (disk / "input").write_text(content)
        lock = "stages: {prepare: {outs: [{path: input, md5: " + f"{rank}" + "}]}}\n"
        (disk / "dvc.lock").write_text(lock)
    command = [*TORCHRUN, "-m", "tests.runtime.alone_on_disk", what]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300
    )


def test_hosts_with_other_settings_and_inputs_are_named(tmp_path: Path) -> None:
    ended = _on_two_disks(tmp_path, "dvc", seeds=(0, 1), inputs=("a", "b"))
    here = socket.gethostname()
    for rank in range(2):  # both say it, so that neither waits for the other
        differ = f"process 1 on {here} and process 0 on {here} differ in param seed, input; give"
        assert f"process {rank}: pretrain: {differ}" in ended.stdout


def test_the_state_on_the_disk_of_the_first_process_is_enough(tmp_path: Path) -> None:
    """The lock on the other disk is of another run; the contents of the inputs are the same."""
    ended = _on_two_disks(tmp_path, "dvc")
    assert ended.returncode == 0, ended.stderr
    for rank in range(2):
        assert f"process {rank} has {{'weights': [tensor([0, 1, 2]), {{'step': 7}}]}}" in ended.stdout


def test_a_process_that_hangs_ends_all(tmp_path: Path) -> None:
    start = time.monotonic()
    ended = _on_two_disks(tmp_path, "hang")
    assert ended.returncode == 1
    assert "imed out" in ended.stderr  # gloo says "Timed out waiting 5000ms"
    assert time.monotonic() - start < 200


def test_the_last_stage_that_saves_nothing_compares_as_well(bench: Any, tmp_path: Path) -> None:
    bench.write_segmenter()
    for rank in range(2):
        disk = tmp_path / f"disk{rank}"
        shutil.copytree("images", disk / "images")
        for name in ("segmenter.safetensors", "params.yaml"):
            shutil.copy(name, disk)
    index = disk / "images/train/index.csv"
    index.write_text(index.read_text().replace("0" * 64, "1" * 64))
    argv = "--images images/train --segmenter segmenter.safetensors --out c.safetensors --metrics m.json"
    command = f'cd disk$RANK && exec "{sys.executable}" -m stages.cluster {argv}'
    ended = subprocess.run(
        [*TORCHRUN, "--no-python", "bash", "-c", command],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 1
    here = socket.gethostname()
    for rank in range(2):
        message = f"process {rank} on {here}: cluster: process 1 on {here} and process 0 on {here} differ in "
        assert f"error: {message}images/train; give all hosts" in ended.stderr
    assert not list(tmp_path.rglob("c.safetensors"))
