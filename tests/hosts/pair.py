"""Two hosts with a repository each, and what tests ask of them."""

import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.datasets import write_params
from tests.hosts.machines import Host
from tests.pipeline.commands import make_clone

BOTH = "bash docs/over_ssh.sh 1 fs4-a fs4-b"
# Before each stage, the other disk gets what earlier stages wrote.
COPY_FIRST = f'tar c data models metrics | ssh fs4-b "tar x -C $PWD" && exec {BOTH} "$@"\n'
PATIENCE_SECONDS = 1200
SETTINGS = {
    "pretrain.epochs": 20,
    "pretrain.batch_size": 6,
    "pretrain.bn_splits": 1,
    "pretrain.queue_size": 6,
    "pretrain.swav.queue_size": 6,
    "train.batch_size": 6,
    "runtime.checkpoint_seconds": 0.0,
    "runtime.timeout_seconds": 600,
    "runtime.launcher": "bash launcher.sh",
}


class Pair:
    """Two hosts with a repository each. Commands are given on the first.

    Attributes:
        reference: copy of the first disk after an undisturbed run.
    """

    reference: Path

    def __init__(self, hosts: tuple[Host, Host], folder: Path, tiny: Mapping[str, Any]) -> None:
        self.first, self.second = hosts
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
        wait_for(lambda: not self.processes())
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


def wait_for(found: Callable[[], Any]) -> None:
    """Ask until the answer is true."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not found():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
