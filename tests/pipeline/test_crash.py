"""`dvc repro` killed in the middle, and started twice at once: the bytes are those of an undisturbed run."""

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import write_params
from tests.pipeline.commands import environment, run
from tests.torture import hashes, torment, undisturbed

pytestmark = pytest.mark.xdist_group("pipeline")  # they share one run of the pipeline

# Some seconds of pretraining, saved again and again.
LONGER = {"pretrain.epochs": 30, "runtime.checkpoint_seconds": 0.2}


@pytest.fixture(scope="module")
def reference(clone: Path, tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]) -> Path:
    """A copy in which a longer `pretrain` ran undisturbed."""
    folder = tmp_path_factory.mktemp("crash") / "reference"
    _copy_before(clone, folder, tiny)
    undisturbed(folder, "pretrain")
    return folder


def _copy_before(clone: Path, folder: Path, tiny: dict[str, Any]) -> None:
    shutil.copytree(clone, folder)
    run(folder, "git", "checkout", "--quiet", "--", ".")
    write_params(folder / "params.yaml", {**tiny, **LONGER})


def test_kills_change_no_byte(clone: Path, reference: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    victim = tmp_path / "victim"
    _copy_before(clone, victim, tiny)
    targets = [("pretrain", way) for way in ("stage", "dvc", "both", "ctrl-c")]
    kills = list(torment(victim, targets, {"pretrain": 1.0}, random.Random(0), ["pretrain"], saved=True))
    assert [kill.way for kill in kills] == ["stage", "dvc", "both", "ctrl-c"]
    assert hashes(victim) == hashes(reference)
    assert (
        run(victim, "git", "diff", "--name-only").split()
        == run(reference, "git", "diff", "--name-only").split()
    )
    assert not list((victim / ".state").rglob("*.safetensors"))


def test_two_at_once(clone: Path, reference: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    """One of them may be refused, and says why; what the other makes is right."""
    folder = tmp_path / "both"
    _copy_before(clone, folder, tiny)
    pair = [
        subprocess.Popen(
            ["dvc", "repro", "pretrain"],
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    shown = [process.communicate()[0] for process in pair]
    assert 0 in [process.returncode for process in pair], shown
    for process, text in zip(pair, shown, strict=True):
        if process.returncode:
            assert "busy" in text or "Unable to acquire lock" in text or "another process" in text, text
    run(folder, "dvc", "repro", "pretrain")
    assert hashes(folder) == hashes(reference)
