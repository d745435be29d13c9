"""Stages over two hosts that share nothing but a cable: `pytest --hosts`."""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from tests.hosts.machines import Host, make_hosts, missing
from tests.hosts.pair import BOTH, Pair, wait_for
from tests.pipeline.commands import run
from tests.torture import hashes

pytestmark = [pytest.mark.hosts, pytest.mark.xdist_group("hosts")]

LONG = {"pretrain.epochs": 4000}
SHORT_TIMEOUT = {"runtime.timeout_seconds": 20}
OUTS = ("models/backbone.safetensors", "models/segmenter.safetensors", "models/pixel_centroids.safetensors")
STAGES = ("pretrain", "embed", "train", "cluster", "predict")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]) -> Iterator[Pair]:
    """Two hosts on which the pipeline has run up to `predict`."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    hosts = make_hosts(folder)
    try:
        made = Pair(hosts, folder, tiny)
        made.repro("predict")
        made.reference = tmp_path_factory.mktemp("reference") / "disk"
        shutil.copytree(made.first.disk, made.reference)
        yield made
    finally:
        for host in hosts:
            host.close()


@pytest.fixture(autouse=True)
def _settings(pair: Pair) -> None:
    pair.params()


def test_only_the_first_host_is_written_to(pair: Pair) -> None:
    """But for what the launcher copies before a stage: the outputs of the stages before."""
    assert (pair.first.disk / "data/predictions.npy").exists()
    for path in ("data/predictions.npy", "dvc.lock", ".state", ".dvc/cache"):
        assert not (pair.second.disk / path).exists()


def test_two_hosts_give_the_bytes_of_two_processes_on_one_and_the_result_of_one(
    pair: Pair, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(pair.reference, alone)
    before = {path: digest for path, digest in hashes(alone).items() if not path.endswith(".json")}
    losses = {stage: _losses(alone, stage) for stage in ("pretrain", "train")}
    assert set(OUTS) < set(before)
    pair.params({"runtime.launcher": "", "runtime.nproc": 2}, pair.first)
    shutil.copy(pair.first.disk / "params.yaml", alone)
    run(alone, "dvc", "repro", "--force", "--single-item", *STAGES)
    two = hashes(alone)
    assert {path: two[path] for path in before} == before  # metrics apart, which tell the machine
    pair.params({"runtime.launcher": ""}, pair.first)
    shutil.copy(pair.first.disk / "params.yaml", alone)
    run(alone, "dvc", "repro", "--force", "--single-item", "embed", "predict")
    one = hashes(alone)
    for path in ("data/embeddings.npy", "data/predictions.npy"):
        assert one[path] == before[path]
    run(alone, "dvc", "repro", "--force", "--single-item", "pretrain", "train")
    for stage, expected in losses.items():
        pd.testing.assert_series_equal(_losses(alone, stage), expected, rtol=0.05)


def _losses(folder: Path, stage: str) -> pd.Series:
    return pd.read_csv(folder / f"metrics/{stage}/history.csv")["loss"][:2]


@pytest.mark.parametrize(
    ("stage", "path", "named"),
    [
        ("pretrain", "stages/pretrain.py", "code __main__"),
        ("embed", "data/images/train/index.csv", "data/images/train"),
        ("train", "params.yaml", "param train"),
        ("cluster", "data/images/train/index.csv", "data/images/train"),
        ("predict", "stages/core/tensors.py", "code stages.core.tensors"),
    ],
)
def test_what_differs_on_a_host_is_named(
    pair: Pair, tmp_path: Path, stage: str, path: str, named: str
) -> None:
    pair.params({"runtime.launcher": BOTH})
    changed = pair.second.disk / path
    text = changed.read_text()
    try:
        if path == "params.yaml":
            pair.params({"runtime.launcher": BOTH, "train.lr": 0.002}, pair.second)
        else:
            changed.write_text(text.replace("\n", "\r\n"))
        log = pair.end(pair.start("--force", "--single-item", stage))
    finally:
        changed.write_text(text)
        restored = pair.first.start("dvc", "checkout", "--allow-missing", log=tmp_path / "log")
        assert restored.wait() == 0  # DVC has deleted the outputs of the stage
    differ = f"{stage}: process 1 on fs4-b and process 0 on fs4-a differ in {named}; give all hosts"
    assert f"error: process 0 on fs4-a: {differ}" in log
    assert f"error: process 1 on fs4-b: {differ}" in log


def test_a_missing_input_is_named_with_its_host(pair: Pair) -> None:
    pair.params({"runtime.launcher": BOTH})
    images = pair.second.disk / "data/images/train/images.npy"
    away = images.rename(images.with_suffix(".away"))
    log = pair.end(pair.start("--force", "--single-item", "embed"))
    away.rename(images)
    assert "error: process 1 on fs4-b: data/images/train/images.npy: " in log


def _worker(host: Host) -> psutil.Process:
    (found,) = [one for one in host.processes("stages.pretrain") if "RANK" in one.environ()]
    return found


def _torchrun(host: Host) -> psutil.Process:
    return _worker(host).parent()


def _launcher(pair: Pair) -> psutil.Process:
    return _torchrun(pair.first).parent().parent()


def _kill_all(pair: Pair) -> None:
    for process in [*pair.processes(), *pair.processes("dvc")]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


LOST = (
    r"error: process 0 on fs4-a: another process has ended, could not be reached, or did not answer for "
    r"runtime\.timeout_seconds"
)
WAYS: dict[str, tuple[Callable[[Pair], Any], str]] = {
    "a process is killed": (lambda pair: _worker(pair.second).kill(), r"Signal 9 \(SIGKILL\)"),
    "torchrun is killed": (lambda pair: _torchrun(pair.second).kill(), r"Killed .*--node-rank 1"),
    "the first torchrun is killed": (lambda pair: _torchrun(pair.first).kill(), r"Killed .*--node-rank 0"),
    "the launcher is killed": (lambda pair: _launcher(pair).kill(), "bash was ended by SIGKILL"),
    "a process hangs": (lambda pair: _worker(pair.second).suspend(), LOST + ".*imed out"),
    "the cable is cut": (lambda pair: pair.second.cable("link", "set", "cable", "down"), LOST),
}


ENDED = tuple(WAYS)[:-2]  # what a process that ends does, the others notice at once


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_ends_the_stage_on_both_hosts_and_the_next_run_goes_on(pair: Pair, way: str) -> None:
    fail, message = WAYS[way]
    pair.params(LONG if way in ENDED else {**LONG, **SHORT_TIMEOUT})
    has_state = bool(pair.states())
    running = _until_saved(pair, "pretrain")
    fail(pair)
    log = pair.end(running)
    pair.second.cable("link", "set", "cable", "up")
    assert re.search(message, log), log
    assert ("pretrain: resuming from the state in" in log) == has_state
    assert not list(pair.second.disk.rglob(".state"))


def _until_saved(pair: Pair, *arguments: str) -> subprocess.Popen[bytes]:
    known = {path: path.stat().st_mtime for path in pair.states()}
    running = pair.start(*arguments)

    def is_saved() -> bool:
        assert running.poll() is None, pair.log()
        return any(known.get(path, 0) < path.stat().st_mtime for path in pair.states())

    wait_for(is_saved)
    return running


@pytest.mark.parametrize("num_processes", ["two hosts", 1, 3])
def test_a_killed_run_goes_on_with_the_state_of_the_first_host(pair: Pair, num_processes: str | int) -> None:
    for path in pair.states():
        path.unlink()
    arguments = ("--force", "--single-item", "pretrain")
    running = _until_saved(pair, *arguments)
    _kill_all(pair)
    pair.end(running)
    if isinstance(num_processes, int):
        pair.params({"runtime.launcher": "", "runtime.nproc": num_processes}, pair.first)
    assert "pretrain: resuming from the state in" in pair.repro(*arguments)
    expected, resumed = _losses(pair.reference, "pretrain"), _losses(pair.first.disk, "pretrain")
    pd.testing.assert_series_equal(resumed, expected, rtol=0.05)
    if num_processes == "two hosts":
        assert hashes(pair.first.disk)[OUTS[0]] == hashes(pair.reference)[OUTS[0]]
