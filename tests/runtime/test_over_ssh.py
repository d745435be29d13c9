"""The launchers for hosts with ssh and with SLURM, with programs that stand for ssh, srun and torchrun."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from stages.runtime.launch import launch
from tests.datasets import REPOSITORY
from tests.workbench import heed_sigint

SCRIPT = REPOSITORY / "docs/over_ssh.sh"
STAGE = ["-m", "stages.train", "--out", "it's here"]
SSH = """#!/bin/bash
# As ssh does: another folder, no variables of the caller's, and it does not end with the one that started it.
while [[ $1 == -o ]]; do shift 2; done
echo "$1" >> "$(dirname "$0")/hosts"
cd / && exec env -i PATH="$PATH" bash -c "${*:2}"
"""
# Says where it runs and with what, then does what the file of its rank says.
PYTHON = """#!/bin/bash
while [[ $1 != --node-rank ]]; do shift; done
here=$(dirname "$0")
counts="OMP_NUM_THREADS=$OMP_NUM_THREADS NCCL_P2P_DISABLE=$NCCL_P2P_DISABLE"
printf '%s\\n' "$PWD" "$counts $PYTORCH_CUDA_ALLOC_CONF" "$DVC_ROOT" "SECRET=$SECRET" "$@" > "$here/$2.part"
trap 'touch "$here/$2.ended"; exit 1' TERM
mv "$here/$2.part" "$here/$2.started"
source "$here/$2.does"
"""
WAITS = "for second in {1..600}; do sleep 0.1; done"


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("ssh", SSH), ("python", PYTHON)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for rank in range(3):
        (folder / f"{rank}.does").write_text("exit 0")
    return folder


def _start(bin_folder: Path, *arguments: str) -> subprocess.Popen[str]:
    folder = bin_folder.parent / "a folder"
    folder.mkdir()
    variables = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "3", "SECRET": "kept"}
    variables |= {"NCCL_P2P_DISABLE": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    variables["DVC_ROOT"] = "/the repository"  # relative paths of params.yaml start there
    command = ["bash", str(SCRIPT), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed_sigint
    )


def _wait_for(*paths: Path) -> None:
    until = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, [path for path in paths if not path.exists()]
        time.sleep(0.05)


def test_every_host_gets_its_command_in_the_same_folder(bin_folder: Path) -> None:
    started = _start(bin_folder, "4", "one", "two", "three", *STAGE)
    assert started.communicate(timeout=60) == ("", "")
    assert started.returncode == 0
    assert sorted((bin_folder / "hosts").read_text().split()) == ["three", "two"]
    for rank in range(3):
        words = (bin_folder / f"{rank}.started").read_text().splitlines()
        folder = str(bin_folder.parent / "a folder")
        secret = "kept" if rank == 0 else ""
        assert words[:4] == [
            folder,
            "OMP_NUM_THREADS=3 NCCL_P2P_DISABLE=1 expandable_segments:True",
            "/the repository",
            f"SECRET={secret}",
        ]
        options = f"--node-rank {rank} --nproc-per-node 4 --log-dir /dev/null --master-addr one"
        expected = f"{options} --master-port 29500".split()
        assert words[4:] == [*expected, *STAGE]


@pytest.mark.parametrize("fails", range(3))
def test_a_host_that_fails_ends_the_others(bin_folder: Path, fails: int) -> None:
    others = {0, 1, 2} - {fails}
    for rank in others:
        (bin_folder / f"{rank}.does").write_text(WAITS)
    ready = " ".join(f"[[ -e $here/{rank}.started ]] &&" for rank in others)
    (bin_folder / f"{fails}.does").write_text(f"until {ready} true; do sleep 0.05; done; exit 7")
    started = _start(bin_folder, "1", "one", "two", "three", *STAGE)
    started.communicate(timeout=60)
    assert started.returncode == 7
    assert all((bin_folder / f"{rank}.ended").exists() for rank in others)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_all_hosts_end_with_the_launcher(bin_folder: Path, number: int, code: int) -> None:
    for rank in range(2):
        (bin_folder / f"{rank}.does").write_text(WAITS)
    started = _start(bin_folder, "1", "one", "two", *STAGE)
    _wait_for(*(bin_folder / f"{rank}.started" for rank in range(2)))
    started.send_signal(number)
    assert started.wait(60) == code
    _wait_for(*(bin_folder / f"{rank}.ended" for rank in range(2)))


@pytest.mark.parametrize("arguments", [[], ["one", *STAGE], ["2", *STAGE], ["2", "one"]], ids=str)
def test_what_it_cannot_read_is_told(bin_folder: Path, arguments: list[str]) -> None:
    started = _start(bin_folder, *arguments)
    message = "usage: bash docs/over_ssh.sh PROCESSES_PER_HOST HOST... -m MODULE ARGUMENT...\n"
    assert started.communicate(timeout=60) == ("", message)
    assert started.returncode == 2


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == *=* ]] || shift; shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" || exit; done
"""


def test_the_launcher_for_slurm_gives_each_host_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the page has it; the first host is the one that writes the outputs."""
    for name, text in (("srun", SRUN), ("torchrun", "#!/bin/bash\nprintf '<%s>' \"$@\"\necho\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    page = (REPOSITORY / "docs/server.md").read_text()
    written = re.search(r"^  launcher: >-\n(?:    .*\n)+", page, re.MULTILINE)
    assert written is not None
    runtime = SimpleNamespace(nproc=1, timeout_seconds=60, **yaml.safe_load(written[0]))
    assert launch("stages.train", ["--out", "it's here"], runtime, "cpu")
    expected = (
        "<--nnodes><2><--node-rank><{}><--nproc-per-node><8><--log-dir></dev/null><--master-addr><first-host>"
        "<--master-port><29500><-m><stages.train><--out><it's here>\n"
    )
    assert capfd.readouterr().out == expected.format(0) + expected.format(1)
