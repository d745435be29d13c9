"""`make preset MINUTES=...`: sizes, channels and epochs of a run that fits into a time."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core.device import set_numerics
from stages.dataset.source import DataSet, list_data
from stages.pretraining.methods import phases
from stages.settings.errors import UserError
from stages.settings.params import read
from stages.settings.schema import Params
from stages.tools import estimate as estimating
from stages.tools import preset
from stages.tools.budget import fit_into
from stages.tools.composing import compose, plain
from stages.tools.estimate import MARGIN, Span
from stages.tools.fitting import Fit
from tests.datasets import REPOSITORY, make_folder


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    make_folder(tmp_path / "photos", num_train=4, num_val=2)
    return list_data(_folder(path=str(tmp_path / "photos")).prepare)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve seconds of MoCo v2 an epoch, 36 of SlotCon; everything else takes eight minutes at 128 px.

    That is with 64 channels and six epochs of training.
    """

    def estimate(params: Params, _: DataSet) -> dict[str, Span]:
        training = 480 / MARGIN * (params.size_px / 128) ** 2 * params.train.epochs / 6
        found = {"train": Span(1, training)}
        each = {"mocov2": 12 / MARGIN, "slotcon": 36 / MARGIN}
        spans = [phase.epochs * each[phase.method] for phase in phases(params.pretrain)]
        return found | ({"pretrain": Span(1, sum(spans) * params.backbone.width / 64)} if spans else {})

    monkeypatch.setattr("stages.tools.budget.estimate", estimate)


def _folder(**prepare: Any) -> Params:
    settings = plain(compose("folder", REPOSITORY / "presets"))
    settings["prepare"] |= {**prepare, "split": settings["prepare"]["split"] | {"by": "folder"}}
    return Params.model_validate(settings)


def _chosen(minutes: float, data: DataSet, better: tuple[Fit, ...] = (), **own: Any) -> dict[str, Any]:
    settings = plain(compose("folder", REPOSITORY / "presets"))
    for section, values in own.items():
        settings[section] = settings[section] | values if isinstance(values, dict) else values
    before = repr(settings)
    changes, times = fit_into(minutes, settings, data, better)
    assert repr(settings) == before
    assert sum(MARGIN * one.high for one in times.values()) <= 60 * minutes
    return {change.name: change.value for change in changes}


@pytest.mark.usefixtures("machine")
def test_what_is_left_goes_to_pretraining(data: DataSet) -> None:
    assert _chosen(20, data) == {"pretrain.epochs": 60}  # 8 minutes of 20 are others; 12 minutes / 12 s
    assert _chosen(1000, data) == {"pretrain.epochs": 400}  # never more


@pytest.mark.usefixtures("machine")
def test_images_become_smaller_until_half_of_the_time_is_left(data: DataSet) -> None:
    sizes = {"size_px": 96, "prepare.train_px": 144, "embed.image_px": 96, "train.image_loss.view_px": 72}
    more = {"refine.appearance_px": 20.2, "pretrain.epochs": 27}  # 4.5 minutes at 96 px; 5.5 are left
    assert _chosen(10, data) == {**sizes, **more}
    sizes = {"size_px": 64, "prepare.train_px": 96, "embed.image_px": 64, "train.image_loss.view_px": 48}
    more = {"refine.appearance_px": 13.5, "pretrain.epochs": 10}  # 2 minutes at 64 px; 2 are left
    assert _chosen(4, data) == {**sizes, **more}
    less = {"backbone.width": 32, "train.epochs": 3}
    more["pretrain.epochs"] = 20  # a minute at 64 px; 2 minutes are left for epochs of 6 s
    assert _chosen(3, data) == {**sizes, **more, **less}
    more["pretrain.epochs"] = 5  # a minute, then half a minute, less than half of the time
    assert _chosen(1.5, data) == {**sizes, **more, **less}


@pytest.mark.usefixtures("machine")
def test_without_pretraining_the_time_belongs_to_the_others(data: DataSet) -> None:
    assert _chosen(8, data, pretrain={"method": "none"}) == {}
    assert _chosen(5, data, pretrain={"method": "none"})["size_px"] == 96


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("size", "chosen"), [(160, 128), (224, 160), (320, 256)])
def test_sizes_stay_multiples_of_the_stride_of_the_trunk(size: int, chosen: int, data: DataSet) -> None:
    """Three quarters of 160 are 120, which a trunk of total stride 32 cannot divide."""
    minutes = 13 * (size / 128) ** 2
    assert _chosen(minutes, data, size_px=size)["size_px"] == chosen


@pytest.mark.usefixtures("machine")
def test_no_epochs_of_pretraining_stay_none(data: DataSet) -> None:
    assert _chosen(8, data, pretrain={"epochs": 0}) == {}


@pytest.mark.usefixtures("machine")
def test_a_network_from_a_file_keeps_its_width(data: DataSet) -> None:
    found = _chosen(1.5, data, pretrain={"method": "none", "init": "model.pth"})
    assert found["train.epochs"] == 3
    assert "backbone.width" not in found


@pytest.mark.usefixtures("machine")
def test_too_few_minutes_are_refused(data: DataSet) -> None:
    with pytest.raises(
        UserError,
        match=r"^1\.4 minutes are too few for 4 training images: .* may take 1 min 30 s; set MINUTES=2 ",
    ):
        _chosen(1.4, data)


def test_the_written_settings_fit_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real measurement, of four images: an hour is more than 400 epochs of these take on any machine."""
    shutil.copytree(REPOSITORY / "presets", tmp_path / "presets")
    (tmp_path / "presets" / "small.yaml").write_text("extends: folder\nsize_px: 64\nbackbone: {width: 16}\n")
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "photos", num_train=4, num_val=2)
    preset.main(["small", "--data", "photos", "--minutes", "60"])
    assert read(Path("params.yaml")).pretrain.epochs == 400
    out = capsys.readouterr().out
    assert "  pretrain.epochs: 20 -> 400, the most" in out
    assert re.search(r"`dvc repro` will take \d.* here, on a", out)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_minutes_are_a_positive_number(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        preset.main(["folder", "--data", "photos", "--minutes", minutes])
    assert (
        f"argument --minutes: must be a number of minutes above 0, got {minutes!r}" in capsys.readouterr().err
    )


def test_other_presets_have_sizes_of_their_own() -> None:
    with pytest.raises(UserError, match=r"cocostuff27 has sizes .* remove MINUTES"):
        preset.main(["cocostuff27", "--data", "coco", "--minutes", "10"])


def test_steps_are_estimated_in_the_precision_of_the_run(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the estimate on a GPU would be of float32, and its sizes too small for the time."""
    seen = []

    def measured(*_: Any) -> Span:
        seen.append((torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()))
        return Span(1, 1)

    for name in ("_pretrain", "_train", "_others"):
        monkeypatch.setattr(estimating, name, measured)
    monkeypatch.setattr(estimating, "starting_python", lambda: Span(1, 1))
    try:
        for precision, deterministic in (("tf32", False), ("float32", True)):
            changes = {"precision": precision, "deterministic": deterministic, "device": "cpu"}
            estimating.estimate(_folder(path=".").model_copy(update=changes), data)
    finally:
        set_numerics("float32", deterministic=True)
    assert seen == [(True, False)] * 3 + [(False, True)] * 3


@pytest.mark.usefixtures("machine")
def test_both_phases_of_a_preset_share_the_time(data: DataSet) -> None:
    """With 20 epochs of 36 s and 10 of 12 s before them, an epoch costs 42 s: 17 fit into 12 minutes."""
    dense = plain(compose("folder", REPOSITORY / "presets"))["pretrain"]["dense"]
    found = _chosen(20, data, pretrain={"method": "slotcon", "dense": {**dense, "mocov2_epochs": 10}})
    assert found == {"pretrain.epochs": 17, "pretrain.dense.mocov2_epochs": 8}


@pytest.mark.usefixtures("machine")
def test_a_better_start_is_taken_if_all_of_its_epochs_fit(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 epochs of 12 s and 50 of 36 s take 40 minutes, and the other stages 8."""
    monkeypatch.chdir(REPOSITORY)
    better = preset.better_start("folder")
    assert preset.better_start("cocostuff27") == ()
    assert _chosen(47, data, better)["pretrain.epochs"] == (47 - 8) * 60 // 12
    dense = {"pretrain.method": "slotcon", "pretrain.epochs": 50, "pretrain.dense.mocov2_epochs": 50}
    assert _chosen(48, data, better) == dense
    longer = _chosen(68, data, better)
    assert (longer["pretrain.epochs"], longer["pretrain.dense.mocov2_epochs"]) == (75, 75)
    assert _chosen(1000, data, better)["pretrain.epochs"] == 100
