"""The stages that write an array row by row: what is done survives a kill, and the bytes stay the same."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from stages import embed, predict, pretrain, refine
from stages.core.hashes import file_sha256
from stages.runtime import links, rows, state
from stages.runtime.watch import Watch
from tests.datasets import REPOSITORY

STAGES: dict[str, tuple[ModuleType, list[str]]] = {
    "embed": (embed, ["--images", "images/train", "--backbone", "backbone.safetensors", "--out", "out.npy"]),
    "predict": (
        predict,
        [
            *("--images", "images/val", "--segmenter", "segmenter.safetensors"),
            *("--centroids", "pixel_centroids.safetensors", "--out", "out.npy"),
        ],
    ),
    "refine": (refine, ["--images", "images/val", "--predictions", "predictions.npy", "--out", "out.npy"]),
}


@pytest.fixture
def ready(bench: Any) -> Any:
    bench.write_backbone()
    bench.write_segmenter()
    bench.write_centroids()
    scores = np.random.default_rng(0).uniform(-1, 1, (4, 3, 16, 16))
    np.save("predictions.npy", scores.astype(np.float16))
    bench.params(predict__batch_size=2)
    return bench


@pytest.mark.parametrize("name", STAGES)
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    stage, argv = STAGES[name]
    stage.main(argv)
    uninterrupted = ready.hashes("out.npy")
    Path("out.npy").unlink()
    saves = ready.count_saves(stage.main, argv, monkeypatch)
    Path("out.npy").unlink()
    assert saves in (2, 3, 4)
    for after in range(1, saves + 1):  # the last one falls after the last row
        ready.interrupt(stage.main, argv, 1, monkeypatch)
        assert not Path("out.npy").exists(), f"after {after} of {saves}"
    capsys.readouterr()
    stage.main(argv)
    assert f"{name}: resuming from the state in" in capsys.readouterr().out
    assert ready.hashes("out.npy") == uninterrupted
    assert ready.saved_states() == []


@pytest.mark.parametrize("name", STAGES)
def test_rows_that_are_done_are_not_computed_again(
    ready: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stage, argv = STAGES[name]
    ready.interrupt(stage.main, argv, 1, monkeypatch)
    (array,) = (path for path in ready.saved_states() if path.suffix == ".npy")
    kept = np.load(array, mmap_mode="r+")
    assert kept[0].any()
    assert not kept[-1].any()
    kept[0], marked = 1, kept[0].copy()
    kept.flush()
    stage.main(argv)
    assert (np.load("out.npy")[0] == 1).all()
    assert not np.array_equal(np.load("out.npy")[0], marked)


@pytest.mark.parametrize("name", STAGES)
def test_rows_of_other_settings_are_not_used(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    stage, argv = STAGES[name]
    ready.interrupt(stage.main, argv, 1, monkeypatch)
    ready.params(predict__batch_size=1, embed__batch_size=4, refine__iterations=2)
    capsys.readouterr()
    stage.main(argv)
    assert "resuming from" not in capsys.readouterr().out


def test_pinning_a_file_leaves_the_saved_state(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hash in params.yaml is a check: it changes no weight."""
    bench.write_backbone()
    changes = {"pretrain__init": "backbone.safetensors", "pretrain__epochs": 2}
    bench.params(**changes)
    argv = ["--images", "images/train", "--out", "out", "--history", "h.csv", "--metrics", "m.json"]
    bench.interrupt(pretrain.main, argv, 1, monkeypatch)
    bench.params(**changes, pretrain__init_sha256=file_sha256(Path("backbone.safetensors")))
    capsys.readouterr()
    pretrain.main(argv)
    assert "pretrain: resuming from the state in" in capsys.readouterr().out


def test_rows_of_one_crf_are_not_gone_on_with_by_the_other(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`refine.backend: auto` follows the device, which is no setting of the results of a stage."""
    stage, argv = STAGES["refine"]
    with monkeypatch.context() as inner:
        inner.setattr(refine, "choose_gpu", lambda *_: torch.device("cpu"))  # exact kernels
        ready.interrupt(stage.main, argv, 1, monkeypatch)
    capsys.readouterr()
    stage.main(argv)  # the permutohedral lattice
    assert "resuming from" not in capsys.readouterr().out


@pytest.mark.parametrize("name", STAGES)
def test_an_input_that_changes_while_it_runs(ready: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Under DVC too, where the fingerprint takes the hashes of dvc.lock: those are of the time before."""
    stage, argv = STAGES[name]
    images = Path(argv[argv.index("--images") + 1])
    Path("dvc.lock").write_text(f"stages: {{prepare: {{outs: [{{path: {images}, md5: abc}}]}}}}\n")
    monkeypatch.setenv("DVC_STAGE", name)
    advance = rows.RowWriter.advance

    def advance_and_change(writer: rows.RowWriter, count: int) -> None:
        advance(writer, count)
        with (images / "images.npy").open("rb+") as file:
            file.seek(-1, 2)
            file.write(b"\x07")

    monkeypatch.setattr(rows.RowWriter, "advance", advance_and_change)
    message = ready.fault(stage.main, argv)
    (folder,) = {path.parent for path in ready.saved_states()}
    assert message == (
        f"{name}: changed while it ran: {images}/images.npy; its result would belong to neither the old "
        f"nor the new, so nothing is written; run `dvc repro` again (the state of this run stays in "
        f"{folder.relative_to(ready.folder)})"
    )
    assert not Path("out.npy").exists()


def test_dvc_lock_is_read_once_whatever_the_number_of_inputs(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is long, and its parser slow; a hash that it has is not computed."""
    predictions = Path("predictions.npy")
    Path("dvc.lock").write_text(f"stages: {{predict: {{outs: [{{path: {predictions}, md5: abc}}]}}}}\n")
    monkeypatch.setenv("DVC_STAGE", "refine")
    read, hashed = [], []
    loaded, file_sha256 = state.loaded, state.file_sha256
    monkeypatch.setattr(state, "loaded", lambda text: read.append(1) or loaded(text))
    monkeypatch.setattr(state, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    watch = Watch("refine", Path("params.yaml"), ["refine"], [Path("images/val"), predictions])
    state.common_fingerprint(watch)
    assert len(read) == 1
    assert sorted(hashed) == [Path("images/val/images.npy"), Path("images/val/index.csv")]


def test_a_result_that_was_delivered_is_not_computed_again(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill before the stage has tidied up; DVC deletes the output and runs the stage again."""
    stage, argv = STAGES["predict"]

    def deliver_and_stop(writer: rows.RowWriter, path: Path) -> None:
        deliver(writer, path)
        raise KeyboardInterrupt

    deliver = rows.RowWriter.deliver
    with monkeypatch.context() as inner:
        inner.setattr(rows.RowWriter, "deliver", deliver_and_stop)
        inner.setattr("stages.runtime.state.StageState.is_due", lambda _: True)
        with pytest.raises(KeyboardInterrupt):
            stage.main(argv)
    delivered = ready.hashes("out.npy")
    Path("out.npy").unlink()
    monkeypatch.setattr(rows.RowWriter, "append", lambda *_: pytest.fail("a row was computed again"))
    stage.main(argv)
    assert ready.hashes("out.npy") == delivered


def test_a_result_on_another_disk_is_copied(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, argv = STAGES["predict"]
    stage.main(argv)
    linked = ready.hashes("out.npy")

    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link", str(source), None, str(target))

    monkeypatch.setattr(links.os, "link", refuse)
    stage.main(argv)
    assert ready.hashes("out.npy") == linked
    assert ready.saved_states() == []


# Runs the stage that its first argument names, up to the first saved state.
UP_TO_A_STATE = """
import runpy, sys
from stages.runtime.state import StageState

def save_and_stop(state, content, save=StageState.save):
    save(state, content)
    sys.exit(9)

StageState.save, StageState.is_due = save_and_stop, lambda state: True
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("name", ["embed", "predict"])
def test_several_processes_go_on_and_give_the_bytes_of_one(ready: Any, name: str) -> None:
    """Batches go to the processes in turn; the last round has one for the first process alone."""
    stage, argv = STAGES[name]
    small = {"embed__batch_size": 3, "predict__batch_size": 1}
    ready.params(**small)
    stage.main(argv)
    alone = ready.hashes("out.npy")
    Path("out.npy").unlink()
    stopped = subprocess.run(
        [sys.executable, "-c", UP_TO_A_STATE, f"stages.{name}", *argv],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert stopped.returncode == 9
    ready.params(**small, runtime__nproc=2)
    ended = ready.command(name, argv)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("device: cpu (1 threads), 2 processes\n") == 1
    assert f"{name}: resuming from the state in" in ended.stdout
    assert ready.hashes("out.npy") == alone
    assert ready.saved_states() == []
