"""The doctor in a real, small DVC repository: every damage that a crash does is found, named and mended."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from stages.settings.errors import UserError
from stages.tools import doctor
from stages.tools.processes import is_on_shared_disk
from tests.datasets import REPOSITORY
from tests.pipeline.commands import environment, run

DVC_YAML = """
stages:
  first:
    cmd: mkdir data/first && cp params.yaml data/first/a.txt && echo 1 > data/first/b.txt
    params: [seed]
    outs: [data/first]
  second:
    cmd: python -m stages.second
    deps: [data/first]
    params: [seconds]
    outs: [models/second.txt]
    metrics:
      - metrics/second.json: {cache: false}
"""
SECOND = """
import pathlib, time
settings = dict(line.split(': ') for line in pathlib.Path('params.yaml').read_text().splitlines())
pathlib.Path("started").touch()
time.sleep(float(settings['seconds']))
pathlib.Path('models/second.txt').write_text('2')
pathlib.Path('metrics/second.json').write_text('{"second": 2}')
"""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, committed, after one `dvc repro`."""
    folder = tmp_path_factory.mktemp("doctor") / "healthy"
    for name in ("data", "models", "metrics", "stages"):
        (folder / name).mkdir(parents=True)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("seed: 0\nseconds: 0\n")
    (folder / "stages/second.py").write_text(SECOND)
    for name in ("data", "models"):
        (folder / name / ".gitignore").write_text("/*\n!/.gitignore\n")
    (folder / ".gitignore").write_text("/.state/\n/started\n__pycache__/\n")
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "config", "user.name", "test")
    run(folder, "git", "config", "user.email", "test@example.org")
    run(folder, "dvc", "init", "--quiet")
    run(folder, "dvc", "repro")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "results")
    return folder


@pytest.fixture
def repository(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil, which is the current folder."""
    folder = tmp_path / "repository"
    shutil.copytree(healthy, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(doctor, "is_on_shared_disk", lambda _: False)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site_cache"))
    for name in ("DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def ask(repository: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Exit code and words of the doctor."""

    def call(*argv: str) -> tuple[int, str]:
        capsys.readouterr()
        code = 0
        try:
            doctor.main(argv)
        except SystemExit as ended:
            code = int(str(ended.code))
        return code, capsys.readouterr().out

    return call


Ask = Callable[..., tuple[int, str]]


def test_a_healthy_repository(ask: Ask) -> None:
    assert ask() == (0, "no problems found\n")
    assert ask("--fix") == (0, "all findings are fixed\n")


def test_hidden_files_of_the_user_are_left_alone(ask: Ask) -> None:
    """Their names may look like those of temporary files, but no stage writes what these would become."""
    for name in ("models/.backup.20240101/weights", "data/photos/.holiday.original", "data/.first.abcdefgh"):
        _write(name)
    code, shown = ask("--fix")
    assert code == 0
    assert shown.count("- ") == 1
    assert "data/.first.abcdefgh: incomplete" in shown
    assert Path("models/.backup.20240101/weights").exists()
    assert Path("data/photos/.holiday.original").exists()


def test_nothing_is_mended_while_a_command_writes(ask: Ask, repository: Path) -> None:
    Path("stages/tools").mkdir()
    Path("stages/tools/slow.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(60)\n")
    _write("models/.second.txt.abc12_xy")
    command = [sys.executable, "-m", "stages.tools.slow"]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        code, shown = ask("--fix")
        process.kill()
    assert code == 1
    assert f"process {process.pid} (" in shown
    assert Path("models/.second.txt.abc12_xy").exists()


def test_what_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        doctor.main(["--root", str(tmp_path)])
    assert str(raised.value) == (
        f"{tmp_path}: not a DVC repository (no .dvc); pass the repository root with --root"
    )
    command = ["python", "-m", "stages.tools.doctor", "--root", str(tmp_path)]
    assert run(REPOSITORY, *command, code=2).startswith("error: ")


# Damages that can be mended without losing anything: how, and all that is said.


def _write(path: str, text: str = "") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def _entry(path: str) -> str:
    return json.dumps({"write": {path: {"pid": 2**22 + 1, "cmd": "dvc repro"}}, "read": {}})


MENDED: dict[str, tuple[Callable[[], object], str, str]] = {
    "an empty rwlock": (
        lambda: _write(".dvc/tmp/rwlock"),
        ".dvc/tmp/rwlock: damaged by a killed DVC process; every DVC command fails with "
        "'Unable to read RWLock-file'",
        "rm .dvc/tmp/rwlock",
    ),
    "half an rwlock": (
        lambda: _write(".dvc/tmp/rwlock", _entry("/a")[:40]),
        ".dvc/tmp/rwlock: damaged by a killed DVC process; every DVC command fails with "
        "'Unable to read RWLock-file'",
        "rm .dvc/tmp/rwlock",
    ),
    "an rwlock of a process that is gone": (
        lambda: _write(".dvc/tmp/rwlock", _entry("/a")),
        ".dvc/tmp/rwlock: held by a dead DVC process for /a",
        "rm .dvc/tmp/rwlock",
    ),
    "an rwlock of experiments": (
        lambda: _write(".dvc/tmp/exps/rwlock"),
        ".dvc/tmp/exps/rwlock: damaged by a killed DVC process; every DVC command fails with "
        "'Unable to read RWLock-file'",
        "rm .dvc/tmp/exps/rwlock",
    ),
    "a half-written file": (
        lambda: _write("models/.second.txt.abc12_xy", 50_000 * "x"),
        "models/.second.txt.abc12_xy: incomplete temporary data (0.1 MB); nothing reads it",
        "rm models/.second.txt.abc12_xy",
    ),
    "a half-written folder": (
        lambda: _write("data/.first.abcdefgh/a.npy", 200_000 * "x"),
        "data/.first.abcdefgh: incomplete temporary data (0.2 MB); nothing reads it",
        "rm -r data/.first.abcdefgh",
    ),
    "a state in which nothing was saved": (
        lambda: _write(".state/pretrain/0123456789abcdef/lock"),
        ".state/pretrain/0123456789abcdef: empty state of a run of pretrain that ended before its first save",
        "rm -r .state/pretrain/0123456789abcdef",
    ),
    "the copy of a killed experiment": (
        lambda: _write(".dvc/tmp/exps/standalone/tmpabc/data/a", 100_000 * "x"),
        ".dvc/tmp/exps/standalone/tmpabc: repository copy of a killed experiment (0.1 MB); DVC does not "
        "reuse it (the saved states of its stages are in .state)",
        "rm -r .dvc/tmp/exps/standalone/tmpabc",
    ),
}


@pytest.mark.parametrize("damage", MENDED)
def test_what_can_be_mended(ask: Ask, damage: str) -> None:
    spoil, what, remedy = MENDED[damage]
    spoil()
    code, shown = ask()
    first, _, rest = shown.partition(f"- {what}\n  to do: {remedy}\n")
    assert (code, first) == (1, "")
    assert not rest or "Unable to read RWLock-file" in rest, "without its lock DVC says no more"
    assert ask("--fix") == (0, f"- {what}\n  done: {remedy}\nall findings are fixed\n")
    assert ask() == (0, "no problems found\n")


@pytest.mark.parametrize("damage", MENDED)
def test_what_a_run_on_another_machine_may_be_using_is_left_alone(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """On a disk that several machines share: no process of the others is to be seen here."""
    monkeypatch.setattr(doctor, "is_on_shared_disk", lambda _: True)
    spoil, what, remedy = MENDED[damage]
    spoil()
    unless = "unless a run on another machine is using it (others may use this disk)"
    assert ask("--fix") == (1, f"- {what}\n  to do: {remedy}, {unless}\n")
    assert ask()[0] == 1, "it is still there"


@pytest.mark.parametrize(("kind", "is_shared"), [("ext4", False), ("nfs4", True), ("fuse.sshfs", True)])
def test_disks_of_a_network_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_shared: bool
) -> None:
    class Disk(NamedTuple):
        mountpoint: str
        fstype: str

    other = "nfs4" if kind == "ext4" else "ext4"
    disks = [Disk("/", other), Disk(str(tmp_path / "a"), kind), Disk(str(tmp_path / "b"), other)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: disks)
    assert is_on_shared_disk(tmp_path / "a/b") == is_shared


def test_a_lock_that_is_gone_meanwhile_is_not_made_again(ask: Ask) -> None:
    Path(".state/train/0123456789abcdef").mkdir(parents=True)
    assert ask()[0] == 1
    assert not Path(".state/train/0123456789abcdef/lock").exists()


def test_while_a_stage_holds_its_lock_nothing_is_mended(ask: Ask) -> None:
    """It may run for hours on another machine, and DVC's rwlock is as old as its start."""
    _write(".state/train/0123456789abcdef/lock")
    _write(".dvc/tmp/rwlock", _entry("/a"))
    _write("models/.second.txt.abc12_xy")
    unless = "unless a run on another machine is using it (a stage is running)"
    with Path(".state/train/0123456789abcdef/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ask("--fix") == (
            1,
            "- .dvc/tmp/rwlock: held by a dead DVC process for /a\n"
            f"  to do: rm .dvc/tmp/rwlock, {unless}\n"
            "- models/.second.txt.abc12_xy: incomplete temporary data (0.0 MB); nothing reads it\n"
            f"  to do: rm models/.second.txt.abc12_xy, {unless}\n"
            "- .state/train/0123456789abcdef: train is running, for it holds the lock of its state\n"
            "  to do: wait until it ends, or end it; it may run on another machine that shares this disk\n",
        )
    assert ask("--fix")[1].count("  done: ") == 3, "and what it leaves if it is killed is mended"


def test_dvc_itself_stops_at_an_empty_rwlock_and_works_again_afterwards(repository: Path, ask: Ask) -> None:
    _write(".dvc/tmp/rwlock")
    Path("params.yaml").write_text("seed: 1\nseconds: 0\n")
    assert "Unable to read RWLock-file" in run(repository, "dvc", "repro", code=255)
    ask("--fix")
    assert "Running stage 'first'" in run(repository, "dvc", "repro")


# Damages that are for the user to decide: named, with the way out, and left alone.


def test_states_that_a_stage_may_go_on_from(ask: Ask) -> None:
    for age, name in enumerate(("new", "old")):
        _write(f".state/train/{name}/state.safetensors", 1_000_000 * "x")
        os.utime(f".state/train/{name}", (time.time() - age, time.time() - age))
    assert ask("--fix") == (
        1,
        "- .state/train/new: train was interrupted and saved its state (1.0 MB)\n"
        "  to do: `dvc repro` resumes from it if code, settings and inputs are unchanged; "
        "to discard it: rm -r .state/train/new\n"
        "- .state/train/old: older state of train, saved with different code, settings or inputs (1.0 MB)\n"
        "  to do: rm -r .state/train/old, unless you plan to return to that version\n",
    )
    assert Path(".state/train/old/state.safetensors").exists()


def test_edits_in_the_stash(repository: Path, ask: Ask) -> None:
    Path("params.yaml").write_text("seed: 5\nseconds: 0\n")
    run(repository, "git", "stash")
    assert ask("--fix") == (
        1,
        "- stash@{0}: the git stash holds edits of params.yaml; `dvc exp run` stashes edits at its "
        "start and does not restore them if it is killed\n"
        "  to do: git stash show -p 'stash@{0}'; to restore the edits: git stash pop 'stash@{0}'\n",
    )
    run(repository, "git", "commit", "--allow-empty", "--quiet", "--message", "later")
    assert ask()[0] == 0, "a stash of an earlier commit is the user's own"


def test_a_hardlink_lock_may_be_that_of_another_machine(ask: Ask) -> None:
    _write(".dvc/tmp/lock", "claim")
    os.link(".dvc/tmp/lock", ".dvc/tmp/0f0f.lock")
    assert ask("--fix") == (
        1,
        "- .dvc/tmp/lock: lock (core.hardlink_lock) of a killed DVC process or of another machine\n"
        "  to do: if no other machine uses this folder: rm .dvc/tmp/lock .dvc/tmp/*.lock\n",
    )


# Processes


def _wait(condition: Callable[[], object]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited in vain")


@pytest.fixture
def running(repository: Path) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """`dvc repro` in the middle of a stage: both processes."""
    Path("params.yaml").write_text("seed: 0\nseconds: 60\n")
    Path("started").unlink()
    dvc = subprocess.Popen(
        ["dvc", "repro"],
        cwd=repository,
        env=environment(repository),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(Path("started").exists)
        stage = next(
            process
            for process in psutil.Process(dvc.pid).children(recursive=True)
            if process.cmdline()[1:] == ["-m", "stages.second"]
        )
        yield dvc, stage
    finally:
        for process in (dvc, stage):
            if process.poll() is None if isinstance(process, subprocess.Popen) else process.is_running():
                process.kill()
        dvc.wait()


def test_a_dvc_that_works_is_left_alone_and_an_orphan_is_ended(
    ask: Ask, running: tuple[subprocess.Popen[bytes], psutil.Process]
) -> None:
    dvc, stage = running
    code, shown = ask("--fix")
    assert code == 1
    assert f"process {dvc.pid} (" in shown
    assert f"process {stage.pid} (python -m stages.second) is running in this repository\n" in shown
    assert shown.endswith("\nwait until it exits or stop it (kill PID), then run this command again\n")
    assert dvc.poll() is None
    assert stage.is_running()

    dvc.send_signal(signal.SIGKILL)
    dvc.wait()
    what = (
        f"- process {stage.pid} (python -m stages.second): the DVC process that started it is dead, so its "
        "result will not be recorded\n"
    )
    remedy = f"kill {stage.pid}; `dvc repro` then resumes from its saved state\n"
    code, shown = ask()
    assert code == 1
    assert shown.startswith(f"{what}  to do: {remedy}")
    assert stage.is_running()
    code, shown = ask("--fix")
    assert shown.startswith(f"{what}  done: {remedy}")
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE
    assert "rm .dvc/tmp/rwlock" in shown, "and what DVC has left is named"
