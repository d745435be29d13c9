"""`make scale`: the arithmetic with made-up costs and a fake clock, and the command at a tiny size."""

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.core.artefacts import write_json, write_metrics
from stages.readers.cityscapes.cityscapes import CITYSCAPES_IMAGES
from stages.settings.errors import UserError
from stages.settings.params import read
from stages.settings.schema import Params
from tests.bench import scale
from tests.bench.files import _preparing
from tests.bench.meter import Observed, observe
from tests.bench.projection import Projection
from tests.bench.stage_rows import Row, Setting, table
from tests.datasets import read_preset

CPU = torch.device("cpu")
STAGES = (
    "prepare", "pretrain", "embed", "label", "select_views", "train", "cluster", "predict", "refine",
    "evaluate", "report",
)  # fmt: skip


def test_seconds_are_those_of_an_item_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # One reading at the start, then for each of three steps its start, its end, and how much time is gone.
    clock = iter([0, 0, 0.9, 0.9, 0.9, 1.3, 1.3, 1.3, 1.5, 1.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = observe(lambda: lambda _: None, 2, CPU, steps=3)
    assert found.seconds == pytest.approx(0.15)  # 0.4 s and 0.2 s; the first step, of 0.9 s, does not count
    assert found.items == 2


def _weights_and_a_step() -> Callable[[int], object]:
    weights = torch.ones(10_000_000)  # 40 MB
    return lambda _: float((torch.ones(20_000_000) + weights[0]).sum())  # two more of 80 MB


def test_memory_is_what_stays_and_what_a_step_needs() -> None:
    # A new process: in this one, other tests have told the C library to keep freed memory, in pieces.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found = process.submit(observe, _weights_and_a_step, 1, CPU).result()
    assert found.kept_bytes == pytest.approx(40e6, rel=0.25)
    assert found.working_bytes == pytest.approx(160e6, rel=0.25)
    assert found.device_bytes == 0


def _costs() -> dict[str, Observed]:
    """A millisecond an image everywhere, a nanosecond a point, and round numbers of bytes."""
    image = Observed(1e-3, 8, kept_bytes=1e9, working_bytes=8e8)
    names = ["read", "pretrain mocov2", "embed", "train passes", "train start", "train", "cluster", "predict"]
    costs = {name: image for name in [*names, "refine", "prepare train", "prepare val"]}
    costs |= {f"{name} k-means": Observed(1e-9, 1000) for name in ("label", "train", "cluster")}
    costs |= {"mini-batch": Observed(2e-9, 1000), "select_views": Observed(1e-6, 1000)}
    for name in ("evaluate", "report"):
        costs |= {f"{name} once": Observed(0.5, 60), f"{name} twice": Observed(0.3, 120)}  # 30 s, then 36 s
    return costs


def _rows(params: Params, **changes: Any) -> dict[str, Row]:
    at = Setting(49_629, 2_175, cores=2, start_seconds=0.0, base_bytes=1e9)._replace(**changes)
    projection = Projection(params, at, _costs(), dim=2048, file_bytes=(1e8, 2e8))
    return {row.stage: row for row in projection.rows()}


def test_a_run_of_the_paper_is_its_steps_times_their_cost() -> None:
    """COCO-Stuff-27: 49,629 images; 800 epochs in batches of 256, then ten in batches of 128."""
    rows = _rows(read_preset("cocostuff27"))
    assert tuple(rows) == STAGES
    pixels, ten_epochs = 5120, 387 * 128  # images that are clustered; images of whole batches
    expected = {
        "prepare": (49_629 + 2_175) / 2 * 1e-3,
        "pretrain": 800 * 193 * 256 * 1e-3,
        "embed": 49.629,
        # Two runs of five restarts of 100 iterations, then all views twice; and reading their features.
        "label": (1000 * 49_629 + 2 * 6 * 49_629) * 1e-9 + 1e-3 * 6 * 49_629 * 2048 * 4 / (3 * 640**2),
        "select_views": 1e-3,
        "train": 10 * (pixels * 1e-3 + 2 * 500_000 * 20 * 1e-9 + 128 * 1e-3 + ten_epochs * 1e-3),
        "cluster": 5120 * 1e-3 + 1_000_000 * 2 * 10 * 50 * 1e-9,
        "predict": 2.175,
        "refine": 2.175 / 2,
        "evaluate": 30 + 6 * (2_175 - 60) / 60,
        "report": 30 + 6 * (2_175 - 60) / 60,
    }
    assert {name: row.seconds for name, row in rows.items()} == pytest.approx(expected)


def test_two_phases_of_pretraining_are_added() -> None:
    params = read_preset("cocostuff27")
    dense = params.pretrain.dense.model_copy(update={"mocov2_epochs": 50})
    changes = {"method": "slotcon", "epochs": 100, "dense": dense}
    params = params.model_copy(update={"pretrain": params.pretrain.model_copy(update=changes)})
    costs = _costs()
    costs["pretrain slotcon"] = Observed(4e-3, 8, kept_bytes=1e9, working_bytes=16e8)
    at = Setting(49_629, 2_175, cores=2, start_seconds=0.0, base_bytes=1e9)
    projection = Projection(params, at, costs, dim=2048, file_bytes=(1e8, 2e8))
    row = {row.stage: row for row in projection.rows()}["pretrain"]
    assert row.seconds == pytest.approx((50 * 1e-3 + 100 * 4e-3) * 193 * 256)
    assert row.host_bytes == pytest.approx(1e9 + 1e9 + 256 * 2e8), "the larger of both"


def test_the_heading_gives_the_views_of_each_phase() -> None:
    params = read_preset("cocostuff27")
    dense = params.pretrain.dense.model_copy(update={"mocov2_epochs": 50, "image_px": 112})
    changes = {"method": "slotcon", "epochs": 100, "image_px": 64, "dense": dense}
    params = params.model_copy(update={"pretrain": params.pretrain.model_copy(update=changes)})
    at = Setting(49_629, 2_175, cores=2, start_seconds=0.0, base_bytes=1e9)
    assert "mocov2: 50 epochs, 64 px, then slotcon: 100 epochs, 112 px, batch 256;" in "".join(
        scale._heading(params, at)
    )


def test_disk_is_that_of_the_arrays() -> None:
    rows = _rows(read_preset("cocostuff27"))
    assert rows["prepare"].disk_bytes == 49_629 * 640 * 640 * 3 + 2_175 * 320 * 320 * 4
    assert rows["embed"].disk_bytes == 49_629 * 6 * 2048 * 4
    assert rows["predict"].disk_bytes == 2_175 * 27 * 40 * 40 * 2
    assert rows["refine"].disk_bytes == 2_175 * 320 * 320
    assert (rows["pretrain"].disk_bytes, rows["train"].disk_bytes) == (1e8, 2e8)


def test_memory_of_a_step_grows_with_the_batch_and_weights_do_not() -> None:
    """1 GB of a process, 1 GB that stays, and 0.1 GB an image."""
    rows = _rows(read_preset("cocostuff27"))
    assert rows["pretrain"].host_bytes == pytest.approx(1e9 + 1e9 + 256 * 1e8)
    held = 2 * 500_000 * 256 * 4  # points that are clustered
    assert rows["train"].host_bytes == pytest.approx(1e9 + 1e9 + 128 * 1e8 + held)
    assert all(row.device_bytes == 0 for row in rows.values())


def test_a_slow_reader_holds_up_the_steps_unless_the_images_are_on_the_gpu() -> None:
    params, costs = read_preset("cocostuff27"), _costs()
    costs["read"] = costs["read"]._replace(seconds=5e-3)
    costs = {name: one._replace(device_bytes=3e9) for name, one in costs.items()}
    found = []
    for free in (80e9, 400e9):  # the images take 61 GB, and may take a quarter
        at = Setting(49_629, 2_175, 2, start_seconds=0.0, base_bytes=1e9, free_device_bytes=free)
        projection = Projection(params, at, costs, dim=2048, file_bytes=(0, 0))
        found.append({row.stage: row for row in projection.rows()}["embed"])
    streamed, resident = found
    assert (streamed.seconds, resident.seconds) == pytest.approx((5 * 49.629, 49.629))
    assert streamed.device_bytes == 3e9
    assert resident.device_bytes == pytest.approx(3e9 + 49_629 * 640 * 640 * 3)


def test_images_that_memory_cannot_hold_come_from_the_disk() -> None:
    params, costs = read_preset("cocostuff27"), _costs()
    costs["read from disk"] = costs["read"]._replace(seconds=7e-3)
    found = {}
    for gigabytes in (64, 48):  # the images take 61 GB
        at = Setting(49_629, 2_175, 2, start_seconds=0.0, base_bytes=1e9, memory_bytes=gigabytes * 1e9)
        projection = Projection(params, at, costs, dim=2048, file_bytes=(0, 0))
        found[gigabytes] = {row.stage: row for row in projection.rows()}["embed"].seconds
        (told,) = (line for line in scale._assumptions(params, at) if "(61 GB)" in line)
        assert ("the disk of data/" in told) == (gigabytes == 48)
    assert found == pytest.approx({64: 49.629, 48: 7 * 49.629})


def test_picie_clusters_all_pixels() -> None:
    """In PiCIE's preset: 5,120 images first, then each other batch once; two views, ten epochs."""
    params = read_preset("cocostuff27_picie")
    side = params.size_px // params.train.feature_stride
    images, first = 387 * 128, 20 * 256
    pixels = side * side
    iterations = params.train.clustering.iterations
    clustering = 2 * (first * pixels * iterations * 1e-9 + (images - first) * pixels * 2e-9)
    assert _rows(params)["train"].seconds == pytest.approx(
        10 * (images * 1e-3 + clustering + 128 * 1e-3 + images * 1e-3)
    )


def test_each_process_starts_and_evaluate_is_two() -> None:
    plain, started = (_rows(read_preset("cocostuff27"), start_seconds=one) for one in (0.0, 3.0))
    added = {name: started[name].seconds - plain[name].seconds for name in STAGES}
    assert added == pytest.approx({name: 6.0 if name == "evaluate" else 3.0 for name in STAGES})


def test_the_table_has_hours_and_gigabytes_and_a_total() -> None:
    rows = [Row("train", 1234 * 3600, 33e9, 4e9, 1e9, "why"), Row("report", 1800, 0, 5e9, 2e6, "so")]
    assert list(table(rows))[2:] == [
        "| train | 1,234 | 33.0 | 4.0 | 1.0 | why |",
        "| report | 0.50 | - | 5.0 | 0.0020 | so |",
        "| **total** | 1,234 | 33.0 | 5.0 | 1.0 | hours and disk added, largest memory |",
    ]


@pytest.mark.parametrize(
    ("preset", "counts"),
    [
        ("cocostuff27", (49_629, 2_175)),
        ("cityscapes27", (21_523, 3_475)),  # PiCIE: test and train_extra; val and train
        ("cityscapes27_stego", (2_975, 500)),
        ("demo", (960, 160)),
    ],
)
def test_the_sizes_of_the_sets_are_the_published_ones(preset: str, counts: tuple[int, int]) -> None:
    assert scale.count_images(read_preset(preset)) == counts
    assert sum(CITYSCAPES_IMAGES.values()) == 24_998


def test_both_benchmarks_are_measured_once() -> None:
    coco = read_preset("cocostuff27")
    assert scale.cost_key(coco) == scale.cost_key(read_preset("cityscapes27"))
    image_loss = coco.train.image_loss.model_copy(update={"weight": 0.0})
    train = coco.train.model_copy(update={"image_loss": image_loss})
    assert scale.cost_key(coco) != scale.cost_key(coco.model_copy(update={"train": train}))
    assert scale.cost_key(coco) != scale.cost_key(coco.model_copy(update={"precision": "float32"}))


def test_photographs_of_ones_own_have_no_published_number() -> None:
    with pytest.raises(
        UserError, match=r"--preset folder: is for images of your own.*make preset NAME=folder"
    ):
        scale.main(["--preset", "folder", "--device", "cpu"])


@pytest.fixture
def tiny_preset(tiny_params: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Params:
    """All that is measured, at the smallest sizes."""
    params = read(
        tiny_params({"report.num_images": 2, "evaluate.baseline_images": 2, "evaluate.baseline_grid": 8})
    )
    monkeypatch.setattr(scale, "read_preset", lambda _: params)
    monkeypatch.setattr("tests.bench.pieces.CPU_POINTS", 200)
    return params


def test_the_command_prints_a_table(tiny_preset: Params, capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--preset", "tiny", "--device", "cpu", "--images", "16", "4"])
    printed = capsys.readouterr().out
    assert printed.startswith("Machine: cpu")
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| - \| ([\d.]+) \| ([\d.]+) \|", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == [*STAGES]
    assert all(float(hours) > 0 and float(host) > 0 for _, hours, host, _ in rows)
    assert "16 training images" in printed
    assert "flat squares" not in printed


@pytest.mark.parametrize("preset", ["cocostuff27", "cityscapes27"])
def test_a_set_that_is_not_there_is_made_at_its_size(
    preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.bench.files.CITYSCAPES_PX", (96, 48))
    monkeypatch.setattr("tests.bench.files.COCO_PX", (64, 48))
    params = read_preset(preset)
    found = dict(_preparing(params, tmp_path / "raw"))
    assert {name: one.items for name, one in found.items()} == {"prepare train": 3, "prepare val": 3}
    assert np.load("raw/train.npy").shape == (3, 640, 640, 3)
    assert len(np.unique(np.load("raw/maps.npy"))) > 1
    at = Setting(*scale.count_images(params), cores=1, start_seconds=1, base_bytes=0)
    assert any("images of flat squares" in line for line in scale._assumptions(params, at))


def test_a_projection_is_held_against_the_last_run(
    tiny_preset: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row(name, 10.0, 0, 0, 0, "") for name in STAGES]
    monkeypatch.setattr(scale, "_project", lambda *_: (rows, None))
    monkeypatch.chdir(tmp_path)
    write_metrics(Path("metrics/prepare.json"), {"prepare": {"train_images": 16, "val_images": 4}})
    stale: list[str] = []
    monkeypatch.setattr("stages.tools.changes.changed_stages", lambda: stale)
    with pytest.raises(
        UserError, match=r"\.state/seconds\.json: no stage has run here; run `dvc repro` first"
    ):
        scale.main(["--check", "--device", "cpu"])
    write_json(Path(".state/seconds.json"), {"train": 8.0, "evaluate@raw": 3.0, "evaluate@refined": 2.0})
    capsys.readouterr()
    scale.main(["--check", "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "| train | 10.0 | 8.0 | 1.25 |",
        "| evaluate | 10.0 | 5.0 | 2.00 |",
        "| **total** | 20.0 | 13.0 | 1.54 |",
    ]
    stale.append("train")
    with pytest.raises(UserError, match=r"--check: train would run again .* run `dvc repro` first"):
        scale.main(["--check", "--device", "cpu"])
