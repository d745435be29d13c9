"""Stages in several processes that a command starts: they run, end together, and go on in any number."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from torch.distributed.elastic.multiprocessing import SignalException

from stages import pretrain
from stages.runtime import launch
from tests.datasets import REPOSITORY
from tests.workbench import heed_sigint

ARGV = ["--images", "images/train", "--out", "out", "--history", "h.csv", "--metrics", "m.json"]
TORCHRUN = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 --log-dir /dev/null"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
TWO = {"pretrain__bn_splits": 2, "runtime__launcher": TORCHRUN}


def test_the_launcher_starts_the_processes_of_a_stage(bench: Any) -> None:
    bench.params(pretrain__bn_splits=2)
    pretrain.main(ARGV)
    alone = pd.read_csv("h.csv")
    bench.params(**TWO)
    ended = bench.command("pretrain", ARGV)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("device: cpu (1 threads), 2 processes\n") == 1
    pd.testing.assert_frame_equal(pd.read_csv("h.csv"), alone, rtol=0.05)
    assert bench.saved_states() == []


def test_a_process_that_dies_ends_the_stage_and_one_process_goes_on(bench: Any) -> None:
    changes = {"pretrain__epochs": 400, "runtime__checkpoint_seconds": 0.0}
    bench.params(**{**TWO, **changes})
    code, log = _kill_rank_1(bench)
    assert code == 1
    assert re.search(r"rank\s*: 1 .*Signal 9 \(SIGKILL\)", log, re.DOTALL), log
    assert not Path("out").exists()
    (saved,) = Path(".state").rglob("state.safetensors")
    bench.params(**changes, pretrain__bn_splits=2)
    resumed = subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain", *ARGV],
        cwd=bench.folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert resumed.stdout is not None
    lines = iter(resumed.stdout.readline, "")
    assert any(line == f"pretrain: resuming from the state in {saved.parent}\n" for line in lines)
    first = next(line for line in lines if line.startswith("pretrain: epoch"))
    assert re.match(r"pretrain: epoch \d+/400  loss \d", first)
    resumed.kill()
    resumed.communicate()


def test_a_process_that_the_system_ends_is_named(bench: Any) -> None:
    """As when memory runs out: it can print nothing itself."""
    bench.params(
        pretrain__bn_splits=2, pretrain__epochs=400, runtime__nproc=2, runtime__checkpoint_seconds=0.0
    )
    code, log = _kill_rank_1(bench)
    assert code == 2
    assert "error: a process was ended by SIGKILL, as by the system when memory runs out" in log
    assert "Traceback" not in log


def test_a_process_that_waited_too_long_for_another_gpu_is_named(bench: Any) -> None:
    """NCCL ends it with SIGABRT from a thread of its own, so no exception tells of it."""
    bench.params(
        pretrain__bn_splits=2, pretrain__epochs=400, runtime__nproc=2, runtime__checkpoint_seconds=0.0
    )
    code, log = _kill_rank_1(bench, signal.SIGABRT)
    assert code == 2
    assert (
        "ended by SIGABRT, as by NCCL when another process does not answer for runtime.timeout_seconds" in log
    )


def _kill_rank_1(bench: Any, by: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
    """Start the stage, end its second process once a state is saved; the exit code and what was said."""
    running = _start(bench)
    _wait_for(lambda: list(Path(".state").rglob("state.safetensors")))
    processes = [one for one in psutil.Process(running.pid).children(recursive=True) if _rank(one) == "1"]
    processes[-1].send_signal(by)
    _, log = running.communicate(timeout=300)
    return running.returncode, log


def _rank(process: psutil.Process) -> str | None:
    return process.environ().get("RANK")


def _wait_for(found: Any) -> None:
    until = time.monotonic() + 300
    while not found():
        assert time.monotonic() < until, "nothing was saved"
        time.sleep(0.1)


def test_a_launcher_that_is_not_there(bench: Any) -> None:
    bench.params(runtime__launcher="no-such-command --nodes 2")
    message = bench.fault(pretrain.main, ARGV)
    assert message.startswith("params.yaml: runtime.launcher: no-such-command cannot be run (No such file")


# A launcher that takes a while to end its processes, as torchrun does.
SLOW = """
import pathlib, signal, sys, time

def end(*_):
    time.sleep(1)
    pathlib.Path("ended").touch()
    sys.exit(1)

signal.signal(signal.SIGTERM, end)
pathlib.Path("started").touch()
time.sleep(300)
"""


def _start(bench: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stages.pretrain", *ARGV]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=bench.folder,
        env=ENVIRONMENT,
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=heed_sigint,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stage_that_is_ended_ends_its_launcher_first(bench: Any, number: int, code: int) -> None:
    Path("slow.py").write_text(SLOW)
    bench.params(runtime__launcher=f"{sys.executable} slow.py")
    running = _start(bench)
    _wait_for(Path("started").exists)
    running.send_signal(number)  # to the stage alone
    running.wait(timeout=60)
    assert running.returncode == code
    assert Path("ended").exists()
    said = "interrupted; run it again to go on from what is saved\n"
    assert running.communicate()[1] == (said if code == 130 else "")


def test_a_stage_that_is_ended_ends_its_processes_without_a_traceback(bench: Any) -> None:
    bench.params(
        pretrain__bn_splits=2, pretrain__epochs=400, runtime__nproc=2, runtime__checkpoint_seconds=0.0
    )
    running = _start(bench)
    _wait_for(lambda: list(Path(".state").rglob("state.safetensors")))
    processes = psutil.Process(running.pid).children(recursive=True)
    assert {"0", "1"} <= {_rank(one) for one in processes}
    running.send_signal(signal.SIGTERM)
    _, log = running.communicate(timeout=60)
    assert running.returncode == 143
    assert "Traceback" not in log
    assert not any(one.is_running() for one in processes)


def test_the_interrupt_that_ends_the_processes_reaches_the_stage(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any) -> Any:
        raise SignalException("ended", signal.SIGINT)

    monkeypatch.setattr(launch, "elastic_launch", lambda *_: end)
    bench.params(pretrain__bn_splits=2, runtime__nproc=2)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(ARGV)


def test_a_launcher_that_is_killed_leaves_no_process(bench: Any) -> None:
    bench.params(**TWO, pretrain__epochs=400, runtime__checkpoint_seconds=0.0)
    running = _start(bench)
    _wait_for(lambda: list(Path(".state").rglob("state.safetensors")))
    processes = psutil.Process(running.pid).children(recursive=True)
    assert {"0", "1"} <= {_rank(one) for one in processes}
    processes[0].kill()  # torchrun
    _, log = running.communicate(timeout=120)
    assert running.returncode == 2
    assert f"error: params.yaml: runtime.launcher: {sys.executable} was ended by SIGKILL; run" in log
    _wait_for(lambda: not any(one.is_running() for one in processes))


def test_what_a_launcher_leaves_is_ended(bench: Any) -> None:
    Path("slow.py").write_text(SLOW)
    Path("careless.sh").write_text(f"{sys.executable} slow.py\n")  # does not end what it has started
    bench.params(runtime__launcher="bash careless.sh")
    running = _start(bench)
    _wait_for(Path("started").exists)
    (launcher,) = psutil.Process(running.pid).children()
    launcher.kill()
    log = running.communicate(timeout=60)[1]
    assert Path("ended").exists()
    assert running.returncode == 2
    assert "runtime.launcher: bash was ended by SIGKILL; run" in log


def test_a_launcher_ends_if_the_stage_is_killed(bench: Any) -> None:
    Path("slow.py").write_text(SLOW)
    bench.params(runtime__launcher=f"{sys.executable} slow.py")
    running = _start(bench)
    _wait_for(Path("started").exists)
    running.kill()
    _wait_for(Path("ended").exists)


def test_a_signal_without_a_name_is_named_by_its_number(bench: Any) -> None:
    bench.params(runtime__launcher="bash -c 'kill -40 $$' bash")
    said = bench.fault(pretrain.main, ARGV)
    assert said.startswith("params.yaml: runtime.launcher: bash was ended by signal 40; run `dvc repro`")


def test_the_launcher_leaves_the_handling_of_signals_as_it_was(bench: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    bench.params(runtime__launcher=f"{sys.executable} -c pass")
    pretrain.main(ARGV)
    assert signal.getsignal(signal.SIGTERM) is before


def test_either_a_launcher_or_a_number_of_processes(bench: Any) -> None:
    bench.params(runtime__launcher="torchrun", runtime__nproc=2)
    message = bench.fault(pretrain.main, ARGV)
    assert "runtime.launcher: starts the processes itself, so it requires nproc: 1, got 2" in message


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
