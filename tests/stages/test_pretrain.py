"""`pretrain` through its command line: files, resuming, and every mistake that it knows."""

import errno
import math
import os
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stages import pretrain
from stages.backbone.checkpoint import load_backbone
from stages.core.artefacts import read_metrics
from stages.runtime.state import StageState
from stages.runtime.watch import Watch

OUTPUTS = ("backbone.safetensors", "history.csv", "pretrain.json")
ARGV = ["--images", "images/train", "--out", OUTPUTS[0], "--history", OUTPUTS[1], "--metrics", OUTPUTS[2]]
FIGURES = ["loss", "instance_accuracy", "alignment", "uniformity", "effective_rank", "usage"]


def test_writes_backbone_history_and_metrics(bench: Any) -> None:
    pretrain.main(ARGV)
    backbone = load_backbone(Path(OUTPUTS[0]), bench.read("backbone").backbone)
    assert backbone.channels == (8, 16, 32, 64)
    tensors, about = bench.tensors(OUTPUTS[0])
    assert about["backbone"] == {"arch": "resnet18", "width": 8, "stem_stride": 2}
    assert about["heads"] == sorted(name for name in tensors if name.startswith("projection."))
    layers = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "projection"}
    assert {name.split(".")[0] for name in tensors} == layers
    assert all(torch.isfinite(value).all() for value in tensors.values())
    history = pd.read_csv(OUTPUTS[1])
    assert list(history.columns) == ["epoch", *FIGURES, "lr"]
    assert history["epoch"].tolist() == [1, 2]
    assert np.isfinite(history.to_numpy()).all()
    metrics = read_metrics(Path(OUTPUTS[2]))
    assert list(metrics) == ["pretrain"]
    assert metrics["pretrain"]["epoch"] == 2
    assert metrics["pretrain"]["loss"] == pytest.approx(history["loss"].iloc[-1], rel=1e-5)


def test_the_learning_rate_rises_over_the_warmup_and_falls_to_the_end_of_the_run(bench: Any) -> None:
    """Two steps an epoch, of which the first three are the warm-up; the history has the rate of the last."""
    bench.params(pretrain__epochs=4, pretrain__lr=0.01, pretrain__warmup_epochs=1.5)
    pretrain.main(ARGV)
    factors = [(step + 1) / 3 for step in range(3)]
    factors += [(1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]
    expected = [0.01 * factor for factor in factors[1::2]]
    assert pd.read_csv(OUTPUTS[1])["lr"].tolist() == pytest.approx(expected, rel=1e-4)


def test_it_learns(bench: Any) -> None:
    bench.params(pretrain__epochs=0)
    pretrain.main(ARGV)
    untrained = bench.tensors(OUTPUTS[0])[0]
    bench.params()
    pretrain.main(ARGV)
    trained = bench.tensors(OUTPUTS[0])[0]
    trunk = [name for name in trained if name.endswith("weight") and not name.startswith("projection")]
    assert all(not torch.equal(trained[name], untrained[name]) for name in trunk)


@pytest.mark.parametrize(("method", "keeps"), [("slotcon", True), ("mocov2", False), ("densecl", False)])
def test_the_backbone_of_slotcon_is_the_teachers(bench: Any, method: str, keeps: bool) -> None:
    """Its authors evaluate the teacher, here as drawn; those of MoCo and DenseCL the query encoder."""
    bench.params(pretrain__method=method, pretrain__epochs=0)
    pretrain.main(ARGV)
    drawn = bench.tensors(OUTPUTS[0])[0]
    bench.params(pretrain__method=method, pretrain__epochs=1, pretrain__key_momentum=1 - 1e-6)
    pretrain.main(ARGV)
    trained = bench.tensors(OUTPUTS[0])[0]
    for name in ("conv1.weight", "layer4.1.conv2.weight"):
        assert torch.allclose(trained[name], drawn[name], atol=1e-6) == keeps
    assert not torch.equal(trained["bn1.running_mean"], drawn["bn1.running_mean"])


def test_without_epochs_the_backbone_is_as_drawn_and_the_history_empty(bench: Any) -> None:
    bench.params(pretrain__epochs=0)
    pretrain.main(ARGV)
    assert (
        Path(OUTPUTS[1]).read_text()
        == "epoch,loss,instance_accuracy,alignment,uniformity,effective_rank,usage,lr\n"
    )
    assert list(read_metrics(Path(OUTPUTS[2]))["pretrain"]) == ["environment"]


SWITCHES: list[dict[str, Any]] = [
    {},
    {"pretrain__symmetric": False},
    {"pretrain__batch_negatives": False},
    {"pretrain__optimizer": "adamw"},
    {"pretrain__head_batch_norm": False},
    {"pretrain__bn_splits": 1},
    {"backbone__stem_stride": 1},
    {"precision": "bfloat16"},
    {"pretrain__optimizer": "lars"},
    {"pretrain__queue_size": 0, "pretrain__key_momentum": 0.0},
    {"pretrain__method": "swav"},
    {"pretrain__method": "swav", "pretrain__swav__local_crops": 0},
    {"pretrain__method": "swav", "pretrain__swav__freeze_epochs": 0},
    {"pretrain__method": "densecl"},
    {"pretrain__method": "densecl", "pretrain__dense__dilate": False},
    {"pretrain__method": "densecl", "pretrain__densecl__warmup_epochs": 2.0},
    {"pretrain__method": "densecl", "pretrain__symmetric": False, "pretrain__head_batch_norm": False},
    {"pretrain__method": "densecl", "precision": "bfloat16"},
    {"pretrain__method": "slotcon"},
    {"pretrain__method": "slotcon", "pretrain__slotcon__grouping_weight": 1.0},
    {"pretrain__method": "slotcon", "pretrain__slotcon__overlap": 1.0},
    {"pretrain__method": "slotcon", "pretrain__slotcon__blur_probability": [0.0, 0.0]},
    {"pretrain__method": "slotcon", "pretrain__slotcon__solarize_probability": [1.0, 1.0]},
    {"pretrain__method": "slotcon", "pretrain__optimizer": "lars"},
    {"pretrain__method": "slotcon", "precision": "bfloat16"},
]


def test_swav_leaves_its_prototypes_and_their_projection_beside_the_trunk(bench: Any) -> None:
    bench.params(pretrain__method="swav", pretrain__epochs=1)
    pretrain.main(ARGV)
    tensors, _ = bench.tensors(OUTPUTS[0])
    assert tensors["prototypes.weight"].shape == (5, 16)
    torch.testing.assert_close(tensors["prototypes.weight"].norm(dim=1), torch.ones(5))
    assert tensors["projection.0.weight"].shape == (64, 64)
    assert tensors["projection.3.weight"].shape == (16, 64)
    backbone = load_backbone(Path(OUTPUTS[0]), bench.read("backbone").backbone)
    assert torch.equal(backbone.state_dict()["conv1.weight"], tensors["conv1.weight"])


def test_densecl_leaves_the_head_of_images_and_slotcon_none(bench: Any) -> None:
    """And the trunk that was dilated is an ordinary one for the stages that follow."""
    for method, heads in (("densecl", {"projection.0.weight", "projection.3.weight"}), ("slotcon", set())):
        bench.params(pretrain__method=method, pretrain__epochs=1)
        pretrain.main(ARGV)
        tensors, about = bench.tensors(OUTPUTS[0])
        assert heads <= set(about["heads"])
        assert {name.split(".")[0] for name in about["heads"]} == {name.split(".")[0] for name in heads}
        trunk = load_backbone(Path(OUTPUTS[0]), bench.read("backbone").backbone)
        assert trunk(torch.zeros(1, 3, 32, 32)).layer4.shape == (1, 64, 2, 2)
        assert all(torch.isfinite(value).all() for value in tensors.values())


def test_densecl_without_cells_is_moco(bench: Any) -> None:
    weights = {}
    for method in ("mocov2", "densecl"):
        bench.params(pretrain__method=method, pretrain__densecl__weight=0.0, pretrain__dense__dilate=False)
        pretrain.main(ARGV)
        weights[method] = bench.tensors(OUTPUTS[0])[0]
    assert weights["mocov2"].keys() == weights["densecl"].keys()
    for name, value in weights["mocov2"].items():
        torch.testing.assert_close(weights["densecl"][name], value, msg=name)


@pytest.mark.parametrize("method", ["densecl", "slotcon"])
def test_maps_of_few_cells_are_pointed_out(
    bench: Any, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    for dilate, cells, remedy in (
        (True, 4, "raise pretrain.dense.image_px to 49 or more, or lower"),
        (False, 2, "raise pretrain.dense.image_px to 97 or more, set pretrain.dense.dilate: true, or lower"),
    ):
        bench.params(pretrain__method=method, pretrain__epochs=0, pretrain__dense__dilate=dilate)
        pretrain.main(ARGV)
        said = capsys.readouterr()
        assert f"pretrain: view_px 32  cells {cells} x {cells}" in said.out
        assert (
            f"pretrain: warning: the last feature map has only {cells} x {cells} cells, from which method: "
            f"{method} learns; {remedy} backbone.stem_stride\n"
        ) in said.err
    bench.params(pretrain__method=method, pretrain__epochs=0, pretrain__dense__image_px=49)
    pretrain.main(ARGV)
    said = capsys.readouterr()
    assert "cells 7 x 7" in said.out
    assert "warning" not in said.err


@pytest.mark.parametrize("method", ["densecl", "slotcon"])
def test_a_vit_is_refused_by_the_methods_of_cells(bench: Any, method: str) -> None:
    vit = {"backbone__arch": "vit_small", "backbone__width": 2, "train__feature_stride": 2}
    bench.params(pretrain__method=method, **vit)
    assert bench.fault(pretrain.main, ARGV) == (
        f"params.yaml:\n  pretrain.method: {method} trains the cells of a ResNet's last feature map, but "
        "backbone.arch: vit_small has a class token, which it would not train; set backbone.arch: resnet18 "
        "or resnet50, or pretrain.method: mocov2 or swav"
    )


def test_every_switch_runs_and_gives_a_result_of_its_own(bench: Any) -> None:
    results = {}
    for changes in SWITCHES:
        bench.params(pretrain__epochs=1, **changes)
        pretrain.main(ARGV)
        assert np.isfinite(pd.read_csv(OUTPUTS[1]).to_numpy()).all(), changes
        results[str(changes)] = bench.tensors(OUTPUTS[0])[0]["conv1.weight"].numpy().tobytes()
    assert len(set(results.values())) == len(SWITCHES)


def test_the_same_inputs_give_the_same_bytes_and_leave_no_state(bench: Any) -> None:
    pretrain.main(ARGV)
    first = bench.hashes(*OUTPUTS)
    pretrain.main(ARGV)
    assert bench.hashes(*OUTPUTS) == first
    assert bench.saved_states() == []
    bench.params(seed=1)
    pretrain.main(ARGV)
    assert bench.hashes(*OUTPUTS)[OUTPUTS[0]] != first[OUTPUTS[0]]


def test_there_is_a_state_for_every_step(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two epochs of two batches; the last step of all may be left to the outputs.
    assert bench.count_saves(pretrain.main, ARGV, monkeypatch) in (2, 3, 4)


@pytest.mark.parametrize(
    ("after", "method"),
    [
        (1, "mocov2"),
        (2, "mocov2"),
        (1, "swav"),
        (1, "densecl"),
        (3, "densecl"),
        (1, "slotcon"),
        (3, "slotcon"),
    ],
)
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: int, method: str
) -> None:
    bench.params(pretrain__method=method)
    pretrain.main(ARGV)
    uninterrupted = bench.hashes(*OUTPUTS)
    for path in OUTPUTS:
        Path(path).unlink()
    bench.interrupt(pretrain.main, ARGV, after, monkeypatch)
    assert not any(Path(path).exists() for path in OUTPUTS)
    assert bench.saved_states()
    capsys.readouterr()
    pretrain.main(ARGV)
    assert "pretrain: resuming from the state in" in capsys.readouterr().out
    assert bench.hashes(*OUTPUTS) == uninterrupted
    assert bench.saved_states() == []


def test_a_run_may_be_interrupted_again_and_again(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain.main(ARGV)
    uninterrupted = bench.hashes(*OUTPUTS)
    for _ in range(2):
        bench.interrupt(pretrain.main, ARGV, 1, monkeypatch)
    pretrain.main(ARGV)
    assert bench.hashes(*OUTPUTS) == uninterrupted


@pytest.mark.parametrize("change", ["params", "images"])
def test_the_state_of_other_params_or_inputs_is_not_used(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    def apply() -> None:
        if change == "params":
            bench.params(seed=1)
        else:
            images = np.load("images/train/images.npy")
            np.save("images/train/images.npy", images[::-1].copy())

    bench.interrupt(pretrain.main, ARGV, 1, monkeypatch)
    apply()
    capsys.readouterr()
    pretrain.main(ARGV)
    assert "resuming from" not in capsys.readouterr().out
    mixed = bench.hashes(*OUTPUTS)
    pretrain.main(ARGV)
    assert bench.hashes(*OUTPUTS) == mixed


def test_settings_that_change_no_result_keep_the_state(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.interrupt(pretrain.main, ARGV, 1, monkeypatch)
    bench.params(runtime__checkpoint_seconds=1.5, train__lr=0.5)
    capsys.readouterr()
    pretrain.main(ARGV)
    assert "resuming from" in capsys.readouterr().out


def test_a_second_process_on_the_same_state_is_refused(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = []

    def run(*_: Any, **__: Any) -> None:
        messages.append(bench.fault(pretrain.main, ARGV))
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "pretrain", run)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(ARGV)
    (lock,) = bench.saved_states()
    assert messages == [
        f"pretrain: another process is running this stage (lock: {lock.relative_to(bench.folder)}); "
        "wait for it to end or stop it, then run `dvc repro` again"
    ]


def test_code_that_decides_numbers_is_part_of_the_fingerprint_wherever_it_lies(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds, generators and formats lie in `runtime`, and an edit there does change the result."""
    bench.interrupt(pretrain.main, ARGV, 1, monkeypatch)
    seeds = sys.modules["stages.core.seeds"]
    edited = bench.folder / "seeds.py"
    edited.write_bytes(Path(str(seeds.__file__)).read_bytes() + b"# edited\n")
    monkeypatch.setattr(seeds, "__file__", str(edited))
    capsys.readouterr()
    pretrain.main(ARGV)
    assert "resuming from" not in capsys.readouterr().out


def test_the_script_itself_is_part_of_the_fingerprint(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under `python -m stages.pretrain` the script is the module `__main__`."""
    script = bench.folder / "pretrain.py"
    script.write_bytes(Path(str(pretrain.__file__)).read_bytes())
    module = ModuleType("__main__")
    module.__file__, module.__spec__ = str(script), ModuleSpec("stages.pretrain", None, origin=str(script))
    monkeypatch.setitem(sys.modules, "__main__", module)
    bench.interrupt(pretrain.main, ARGV, 1, monkeypatch)
    script.write_bytes(script.read_bytes() + b"# edited\n")
    capsys.readouterr()
    pretrain.main(ARGV)
    assert "resuming from" not in capsys.readouterr().out


def test_a_saved_state_that_is_truncated_is_named(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.interrupt(pretrain.main, ARGV, 1, monkeypatch)
    (state,) = (path for path in bench.saved_states() if path.suffix == ".safetensors")
    state.write_bytes(state.read_bytes()[:1000])
    message = bench.fault(pretrain.main, ARGV)
    assert message.startswith(f"{state.relative_to(bench.folder)}: not a safetensors file of this project (")
    assert "; delete it" in message


def test_a_data_set_that_is_too_small_is_refused_before_anything_starts(bench: Any) -> None:
    bench.params(pretrain__batch_size=32, pretrain__queue_size=64)
    assert bench.fault(pretrain.main, ARGV) == (
        "params.yaml: pretrain.batch_size: 32 is more than the 16 training images; lower it, "
        "or add images\n"
        "params.yaml: pretrain.queue_size: 64 is more than the 16 training images, so images would be "
        "their own negatives; about half of the images is a good size"
    )
    assert bench.saved_states() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pretrain__method": "swav", "pretrain__swav__num_prototypes": 3},
            "global_k: 4 is more than the 3 prototypes (pretrain.swav.num_prototypes); lower it, raise their "
            "number, or set label.centres: kmeans",
        ),
        (
            {"label__centres": "prototypes"},
            "label.centres: prototypes needs a head that pretrain.method: mocov2 does not train; set auto or "
            "kmeans or projector",
        ),
        (
            {"pretrain__method": "slotcon", "label__centres": "projector"},
            "label.centres: projector needs a head that pretrain.method: slotcon does not train; set auto or "
            "kmeans",
        ),
    ],
)
def test_what_labeling_will_lack_is_told_before_pretraining(
    bench: Any, changes: dict[str, Any], message: str
) -> None:
    bench.params(**changes)
    assert bench.fault(pretrain.main, ARGV) == f"params.yaml: {message}"
    bench.params(**changes, pretrain__epochs=0)  # the heads are those of a checkpoint, or there are none
    pretrain.main(ARGV)


def test_a_graph_without_a_gpu_ends_with_its_remedy(bench: Any) -> None:
    bench.params(runtime__cuda_graph=True)
    assert bench.fault(pretrain.main, ARGV) == (
        "params.yaml: runtime.cuda_graph: true needs a GPU, but the device is cpu; set "
        "runtime.cuda_graph: auto"
    )


def test_an_index_of_other_images_is_refused(bench: Any) -> None:
    lines = Path("images/train/index.csv").read_text().splitlines(keepends=True)
    Path("images/train/index.csv").write_text("".join(lines[:-1]))
    assert bench.fault(pretrain.main, ARGV) == (
        "images/train/images.npy: has 16 images, but index.csv has 15 rows; "
        "delete the folder and run `dvc repro` to make it again"
    )


@pytest.mark.parametrize("method", ["mocov2", "densecl", "slotcon"])
def test_a_loss_that_is_no_number_ends_it(bench: Any, method: str) -> None:
    bench.params(pretrain__method=method, pretrain__lr=1e30, pretrain__warmup_epochs=0.0)
    assert re.fullmatch(
        r"pretrain: not finite in epoch 1, at step 2: loss, [a-z_, ]+; lower pretrain\.lr, or raise "
        r"pretrain\.warmup_epochs",
        bench.fault(pretrain.main, ARGV),
    )


def test_state_is_kept_as_it_was_given(bench: Any) -> None:
    state = StageState(Watch("pretrain", Path("params.yaml"), ["seed"], []), interval_seconds=0)
    content = {
        "weights": {"a": torch.arange(6).view(2, 3), "b": torch.zeros((), dtype=torch.long)},
        "history": [{"epoch": 1, "loss": 0.1 + 0.2}],
        "numbers": {0: torch.ones(2), 1: None},
        "flag": True,
    }
    state.save(content)
    loaded = state.load()
    assert torch.equal(loaded["weights"]["a"], content["weights"]["a"])
    assert loaded["weights"]["b"].dtype == torch.long
    assert loaded["history"] == content["history"]
    assert list(loaded["numbers"]) == [0, 1]
    assert loaded["numbers"][1] is None
    assert loaded["flag"] is True
    state.finish()
    assert bench.saved_states() == []


def test_a_folder_that_a_network_drive_keeps_for_open_files_does_no_harm(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS gives a deleted file that is open another name, so its folder cannot be removed yet."""

    def keep(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    for _ in range(2):
        state = StageState(Watch("pretrain", Path("params.yaml"), ["seed"], []), interval_seconds=0)
        assert state.load() is None
        state.save({"epoch": 1})
        with monkeypatch.context() as inner:
            inner.setattr(os, "rmdir", keep)
            state.finish()
        assert bench.saved_states() == []


def test_the_state_lies_with_the_repository_and_not_with_a_copy_of_it(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC runs queued experiments in copies that it throws away, and names the repository in DVC_ROOT."""
    monkeypatch.setenv("DVC_ROOT", str(bench.folder / "main"))
    bench.interrupt(pretrain.main, ARGV, 1, monkeypatch)
    assert list((bench.folder / "main/.state/pretrain").glob("*/state.safetensors"))
    assert not (bench.folder / ".state").exists()


@pytest.mark.parametrize(
    ("method", "networks"),
    [
        ("mocov2", ["Encoder"] * 2),
        ("swav", ["MultiCropEncoder"]),
        ("densecl", ["DenseEncoder"] * 2),
        ("slotcon", ["SlotEncoder"] * 2),
    ],
)
def test_compiled_networks_do_the_same(
    bench: Any, compiled: list[str], method: str, networks: list[str]
) -> None:
    bench.params(pretrain__method=method)
    pretrain.main(ARGV)
    plain = bench.hashes(*OUTPUTS)
    assert compiled == []
    bench.params(pretrain__method=method, compile=True)
    pretrain.main(ARGV)
    assert compiled == networks
    assert bench.hashes(*OUTPUTS) == plain


def test_compiling_needs_a_compiler(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    bench.params(compile=True)
    assert bench.fault(pretrain.main, ARGV) == (
        "params.yaml: compile: true needs a C++ compiler, but no-such-compiler was not found; install one, "
        "set the environment variable CXX to yours, or set compile: false"
    )
