"""Stages over two hosts that share nothing but a cable: `pytest --hosts`."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from tests.datasets import write_params
from tests.hosts.machines import Host, make_hosts, missing
from tests.pipeline.commands import make_clone, run
from tests.torture import hashes

pytestmark = [pytest.mark.hosts, pytest.mark.xdist_group("hosts")]

BOTH = "bash docs/over_ssh.sh 1 fs4-a fs4-b"
# Before each stage, the other disk gets what earlier stages wrote.
COPY_FIRST = f'tar c data models metrics | ssh fs4-b "tar x -C $PWD" && exec {BOTH} "$@"\n'
PATIENCE_SECONDS = 300
TIMEOUT_SECONDS = 20
SETTINGS = {
    "pretrain.epochs": 12,
    "pretrain.batch_size": 6,
    "pretrain.queue_size": 6,
    "pretrain.swav.queue_size": 6,
    "train.batch_size": 6,
    "runtime.checkpoint_seconds": 0.0,
    "runtime.timeout_seconds": TIMEOUT_SECONDS,
    "runtime.launcher": "bash launcher.sh",
}
LONG = {"pretrain.epochs": 4000}
OUTS = ("models/backbone.safetensors", "models/segmenter.safetensors", "models/pixel_centroids.safetensors")
STAGES = ("pretrain", "embed", "train", "cluster", "predict")


class Pair:
    """Two hosts with a repository each. Commands are given on the first."""

    def __init__(self, folder: Path, tiny: Mapping[str, Any]) -> None:
        self.first, self.second = make_hosts(folder)
        self._log, self._tiny = folder / "log", tiny
        make_clone(self.first.disk)
        (self.first.disk / "launcher.sh").write_text(COPY_FIRST)
        self.params()
        shutil.copytree(self.first.disk, self.second.disk, dirs_exist_ok=True)

    def params(self, changes: Mapping[str, Any] | None = None, *hosts: Host) -> None:
        """Write params.yaml on both hosts, or on those that are named."""
        for host in hosts or (self.first, self.second):
            write_params(host.disk / "params.yaml", {**self._tiny, **SETTINGS, **(changes or {})})

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `dvc repro`."""
        return self.first.start("dvc", "repro", *arguments, log=self._log)

    def end(self, repro: subprocess.Popen[bytes]) -> str:
        """Wait until it ends with an error; what it printed. No process may be left on either host."""
        assert repro.wait(PATIENCE_SECONDS), self.log()
        _wait_for(lambda: not self.processes())
        return self.log()

    def repro(self, *arguments: str) -> str:
        """Run `dvc repro` to its end; what it printed."""
        assert self.start(*arguments).wait(PATIENCE_SECONDS) == 0, self.log()
        return self.log()

    def log(self) -> str:
        return self._log.read_text()

    def processes(self, word: str = "stages.") -> list[psutil.Process]:
        """On both hosts; by default what runs, launches or guards stages."""
        return [*self.first.processes(word), *self.second.processes(word)]

    def states(self) -> list[Path]:
        """Saved states on both disks."""
        return [path for host in (self.first, self.second) for path in host.disk.rglob("state.safetensors")]


def _wait_for(found: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not found():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]) -> Iterator[Pair]:
    """Two hosts on which the pipeline has run up to `predict`."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    made = Pair(folder, tiny)
    try:
        made.repro("embed")
        yield made
    finally:
        made.first.close()
        made.second.close()


@pytest.fixture(autouse=True)
def _settings(pair: Pair) -> None:
    pair.params()


def test_two_hosts_give_the_bytes_of_two_processes_on_one_and_the_result_of_one(
    pair: Pair, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(pair.first.disk, alone)
    before = hashes(alone)
    pair.params({"runtime.launcher": "", "runtime.nproc": 2}, pair.first)
    shutil.copy(pair.first.disk / "params.yaml", alone)
    run(alone, "dvc", "repro", "--force", "--single-item", *STAGES)
    now = hashes(alone)
    compared = [path for path in before if not path.endswith(".json")]  # which record the machine
    assert len(compared) > 8
    assert {path: now[path] for path in compared} == {path: before[path] for path in compared}
    pair.params({"runtime.launcher": ""}, pair.first)
    shutil.copy(pair.first.disk / "params.yaml", alone)
    run(alone, "dvc", "repro", "--force", "--single-item", "embed", "predict")
    one = hashes(alone)
    for path in ("data/embeddings.npy", "data/predictions.npy"):
        assert one[path] == before[path]
    for stage, tolerance in (("pretrain", 0.05), ("train", 0.05)):
        run(alone, "dvc", "repro", "--force", "--single-item", stage)
        losses = [
            pd.read_csv(disk / f"metrics/{stage}/history.csv")["loss"][:2]
            for disk in (alone, pair.first.disk)
        ]
        pd.testing.assert_series_equal(*losses, rtol=tolerance)


def test_only_the_first_host_is_written_to(pair: Pair) -> None:
    """What the launcher copies apart: it does so before a stage, so the last stage's output shows it."""
    assert (pair.first.disk / "data/predictions.npy").exists()
    assert not (pair.second.disk / "data/predictions.npy").exists()
    assert not (pair.second.disk / "dvc.lock").exists()
    assert not (pair.second.disk / ".state").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_other_code_settings_or_data_on_a_host_are_named(pair: Pair, stage: str) -> None:
    pair.params({"runtime.launcher": BOTH})
    message = re.compile(
        rf"error: process 1 on fs4-b: {stage}: has other code, settings or inputs than process 0"
    )
    for change, undo in _differences(pair, stage):
        change()
        log = pair.end(pair.start("--force", "--single-item", stage))
        undo()
        assert message.search(log), log


def _differences(pair: Pair, stage: str) -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    disk = pair.second.disk
    code, data = disk / f"stages/{stage}.py", disk / "data/images"
    key = {"embed": "embed.batch_size", "predict": "predict.batch_size"}.get(stage, "seed")
    yield (
        lambda: pair.params({"runtime.launcher": BOTH, key: 3}, pair.second),
        lambda: pair.params({"runtime.launcher": BOTH}, pair.second),
    )
    yield lambda: code.write_text(code.read_text() + "\n"), lambda: code.write_text(code.read_text()[:-1])
    index = data / ("val" if stage == "predict" else "train") / "index.csv"
    text = index.read_text()
    yield lambda: index.write_text(text.replace("demo", "other")), lambda: index.write_text(text)


def test_a_missing_input_is_named_with_its_host(pair: Pair) -> None:
    pair.params({"runtime.launcher": BOTH})
    images = pair.second.disk / "data/images/train/images.npy"
    images.rename(images.with_suffix(".away"))
    started = time.monotonic()
    log = pair.end(pair.start("--force", "--single-item", "embed"))
    images.with_suffix(".away").rename(images)
    assert re.search(r"error: process 1 on fs4-b: data/images/train/images.npy: ", log), log
    assert time.monotonic() - started < PATIENCE_SECONDS / 2


def _worker(host: Host) -> psutil.Process:
    (found,) = [one for one in host.processes("stages.pretrain") if "RANK" in one.environ()]
    return found


def _torchrun(host: Host) -> psutil.Process:
    return _worker(host).parent()


def _launcher(pair: Pair) -> psutil.Process:
    return _torchrun(pair.first).parent().parent()


def _kill_all(pair: Pair) -> None:
    for process in [*pair.processes("stages."), *pair.processes("dvc")]:
        if process.is_running():
            process.kill()


LOST = "error: process 0 on fs4-a: another process has ended, or did not answer"
WAYS: dict[str, tuple[Callable[[Pair], Any], str]] = {
    "a process is killed": (lambda pair: _worker(pair.second).kill(), r"Signal 9 \(SIGKILL\)"),
    "torchrun is killed": (lambda pair: _torchrun(pair.second).kill(), LOST),
    "the first torchrun is killed": (
        lambda pair: _torchrun(pair.first).kill(),
        "1 on fs4-b: another process",
    ),
    "the launcher is killed": (lambda pair: _launcher(pair).kill(), "bash was ended by SIGKILL"),
    "a process hangs": (lambda pair: _worker(pair.second).suspend(), LOST + ".*imed out"),
    "the cable is cut": (lambda pair: pair.second.cable("link", "set", "cable", "down"), LOST),
    "all are killed": (_kill_all, ""),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_ends_the_stage_on_both_hosts_and_the_next_run_goes_on(pair: Pair, way: str) -> None:
    fail, message = WAYS[way]
    pair.params(LONG)
    running = pair.start("pretrain")
    known = {path: path.stat().st_mtime for path in pair.states()}
    _wait_for(lambda: any(known.get(path, 0) < path.stat().st_mtime for path in pair.states()))
    fail(pair)
    started = time.monotonic()
    log = pair.end(running)
    print(way, time.monotonic() - started, log)
    pair.second.cable("link", "set", "cable", "up")
    assert re.search(message, log), log
    assert not list(pair.second.disk.rglob(".state"))
