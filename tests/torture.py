"""Kill `dvc repro` at random points, again and again, and hold its results against an undisturbed run.

`python -m tests.torture --kills 20`; a short version of it is a test (tests/pipeline/test_crash.py).
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from tests.conftest import TINY
from tests.datasets import REPOSITORY, write_params
from tests.pipeline.commands import environment, make_clone, run

LONG = ("pretrain", "train", "embed", "predict", "refine", "prepare", "cluster")
WAYS = ("stage", "dvc", "both", "ctrl-c")
# Long enough for each stage that a kill falls into its work, and states that are seconds apart.
SETTINGS: dict[str, Any] = {
    **TINY,
    "prepare.demo.num_train": 192,
    "prepare.demo.num_val": 96,
    "pretrain.epochs": 12,
    "train.epochs": 6,
    "train.batch_size": 8,
    "cluster.sample_pixels": 20000,
    "runtime.checkpoint_seconds": 0.3,
}
PATIENCE_SECONDS = 600
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Kill:
    """One kill: who was hit, in which stage, after how much work of it, and what it took afterwards."""

    way: str
    stage: str
    cpu_seconds: float
    doctor: bool


def hashes(folder: Path) -> dict[str, str]:
    """What dvc.lock says of every output."""
    stages = YAML(typ="safe", pure=True).load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def undisturbed(folder: Path, *stages: str) -> dict[str, float]:
    """Run the pipeline, or what leads to `stages`, to its end; CPU seconds that each stage took."""
    seconds: dict[str, float] = {}
    with _repro(folder, stages) as dvc:
        while dvc.poll() is None:
            time.sleep(POLL_SECONDS)
            if current := _stage_of(dvc):
                seconds[current[0]] = _cpu_seconds(current[1])
        assert dvc.returncode == 0, (folder / "repro.log").read_text()[-3000:]
    return seconds


def torment(
    folder: Path,
    targets: Sequence[tuple[str, str]],
    seconds: Mapping[str, float],
    chance: random.Random,
    stages: Sequence[str] = (),
    *,
    saved: bool = False,
) -> Iterator[Kill]:
    """Start `dvc repro`, wait for a stage, kill; one for each of `targets` (stage, way). Then let it end.

    Args:
        folder: of the repository; its results are not there yet.
        targets: in the order of the flow.
        seconds: CPU time that each stage takes undisturbed; the kill falls somewhere within. Not the time
            on the clock, which says little of the work on a busy machine.
        chance: of the moments.
        stages: that are wanted; all where none is named.
        saved: count the time of a kill from the first state that the stage saves.
    """
    for stage, way in targets:
        patience = time.monotonic() + PATIENCE_SECONDS
        while (hit := _kill_once(folder, stage, way, chance.uniform(0, seconds[stage]), saved)) is None:
            assert time.monotonic() < patience, f"{stage}: never came to run"
        doctor = _needs_doctor(folder)
        yield Kill(way, *hit, doctor)
    run(folder, "dvc", "repro", *stages)


def _kill_once(folder: Path, target: str, way: str, delay: float, saved: bool) -> tuple[str, float] | None:
    started = time.time()
    # `target` and no more: a run that comes to its end must not cost a whole flow.
    with _repro(folder, (target,)) as dvc:
        while (current := _stage_of(dvc)) is None or current[0] != target:
            time.sleep(POLL_SECONDS)
            if dvc.poll() is not None:
                # The stage was finished in time by the run before: any moment of a run is good.
                assert dvc.returncode == 0, (folder / "repro.log").read_text()[-3000:]
                _forget(folder, target)
                return None
        while saved and current is not None and not _has_saved(folder, target, started):
            time.sleep(POLL_SECONDS)
            current = _stage_of(dvc)
        if saved and current is not None:
            delay += _cpu_seconds(current[1])
        spent = 0.0
        while current is not None and current[0] == target and (spent := _cpu_seconds(current[1])) < delay:
            time.sleep(POLL_SECONDS)
            current = _stage_of(dvc)
        if dvc.poll() is not None:
            _forget(folder, target)
            return None
        if way == "ctrl-c":
            os.killpg(dvc.pid, signal.SIGINT)
        if way in ("dvc", "both"):
            dvc.kill()
        if way in ("stage", "both") and current is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                current[1].kill()
        dvc.wait()
        return current[0] if current else "between stages", spent


def _has_saved(folder: Path, stage: str, since: float) -> bool:
    """Whether a stage has saved a state after a moment in seconds."""
    states = (folder / ".state" / stage).rglob("*.safetensors")
    with contextlib.suppress(FileNotFoundError):  # one that is replaced meanwhile
        return any(path.stat().st_mtime > since for path in states)
    return False


def _forget(folder: Path, stage: str) -> None:
    """Make DVC run a stage again: neither the lock nor the run cache may know it."""
    yaml = YAML()
    lock = yaml.load((folder / "dvc.lock").read_text(encoding="utf-8"))
    lock["stages"].pop(stage, None)
    with (folder / "dvc.lock").open("w", encoding="utf-8") as file:
        yaml.dump(lock, file)
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)


def _needs_doctor(folder: Path) -> bool:
    """Whether anything is left that stops the next `dvc repro`; if so it is mended."""
    command = [sys.executable, "-m", "stages.tools.doctor", "--fix"]
    shown = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    ).stdout
    return "  done: kill " in shown or "Unable to read RWLock-file" in shown


@contextlib.contextmanager
def _repro(folder: Path, stages: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    # What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (folder / "repro.log").open("wb") as log:
        dvc = subprocess.Popen(
            ["dvc", "repro", *stages],
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=log,
            start_new_session=True,  # a group of its own, as a shell gives it: Ctrl-C reaches all of it
        )
        try:
            yield dvc
        finally:
            if dvc.poll() is None:
                os.killpg(dvc.pid, signal.SIGKILL)
                dvc.wait()


def _cpu_seconds(process: psutil.Process) -> float:
    """Of a process that may have ended meanwhile."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _stage_of(dvc: subprocess.Popen[bytes]) -> tuple[str, psutil.Process] | None:
    """Name and process of the stage that runs."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(dvc.pid).children(recursive=True):
            words = process.cmdline()
            if len(words) > 2 and words[1] == "-m" and words[2].startswith("stages."):
                return words[2].removeprefix("stages."), process
    return None


def main() -> None:
    """The long version: every long stage, every way."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of stages, ways and moments")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    order = list(YAML(typ="safe", pure=True).load((REPOSITORY / "dvc.yaml").read_text())["stages"])
    pairs = [(LONG[place % len(LONG)], WAYS[place % len(WAYS)]) for place in range(args.kills)]
    targets = sorted(pairs, key=lambda pair: order.index(pair[0]))
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        reference, victim = Path(name, "reference/clone"), Path(name, "victim/clone")
        for folder in (reference, victim):
            make_clone(folder)
            write_params(folder / "params.yaml", SETTINGS)
        seconds = undisturbed(reference)
        print(
            "undisturbed:",
            "  ".join(f"{stage} {taken:.1f} s" for stage, taken in seconds.items()),
            flush=True,
        )
        kills = []
        for kill in torment(victim, targets, seconds, chance):
            kills.append(kill)
            doctor = ", and the doctor was needed" if kill.doctor else ""
            print(
                f"{len(kills)}: {kill.way} after {kill.cpu_seconds:.1f} s of {kill.stage}{doctor}",
                flush=True,
            )
        expected, found = hashes(reference), hashes(victim)
        same = sum(expected[path] == found.get(path) for path in expected)
        print(f"outputs with the bytes of the undisturbed run: {same} of {len(expected)}")
        by_stage = Counter(kill.stage for kill in kills)
        print("kills:", "  ".join(f"{stage} {count}" for stage, count in sorted(by_stage.items())))
        print(run(victim, sys.executable, "-m", "stages.tools.doctor"), end="")
        sys.exit(expected != found)


if __name__ == "__main__":
    main()
