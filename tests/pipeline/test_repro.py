"""The real thing: `dvc repro` in a clean clone with tiny params, and what an edit costs afterwards."""

import contextlib
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.core.artefacts import read_metrics
from tests.datasets import REPOSITORY, write_params
from tests.pipeline.commands import copy, environment, run
from tests.pipeline.pipeline_file import (
    NEUTRAL_KEYS,
    NEUTRAL_ROOMS,
    files_below,
    needed_by_neutral_rooms,
    read_stages,
)

pytestmark = pytest.mark.xdist_group("pipeline")  # they share one run of the pipeline

STAGES = read_stages()


def _hash(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {
        str(file.relative_to(path.parent)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


# After one run


def test_everything_is_there(clone: Path) -> None:
    for stage in STAGES.values():
        for path in (*stage.outs, *stage.uncached):
            assert (clone / path).exists(), f"{stage.name} left no {path}"
            assert _hash(clone / path), f"{path} is an empty folder"
    assert (clone / "metrics/report/index.html").stat().st_size > 1000
    assert not list((clone / ".state").rglob("*.safetensors")), "state is left after success"


def test_the_lock_names_every_stage_and_every_hash(clone: Path) -> None:
    locked = YAML(typ="safe", pure=True).load((clone / "dvc.lock").read_text())["stages"]
    assert sorted(locked) == sorted(STAGES)
    for name, stage in STAGES.items():
        assert {out["path"] for out in locked[name]["outs"]} == {*stage.outs, *stage.uncached}
        assert {dep["path"] for dep in locked[name]["deps"]} == {*stage.data_deps, *stage.code_deps()}
        assert all(entry["md5"] for kind in ("deps", "outs") for entry in locked[name][kind])


def test_large_outputs_are_not_committed_and_small_ones_are(clone: Path) -> None:
    tracked = set(run(clone, "git", "ls-files").splitlines())
    assert "dvc.lock" in tracked
    for stage in STAGES.values():
        assert set(stage.uncached) <= tracked
        assert not [path for path in tracked if path.startswith(stage.outs or ("/",))]
    assert not [path for path in tracked if path.startswith(".state") or "__pycache__" in path]


def test_dvc_shows_the_headline_and_the_files_hold_the_rest(clone: Path) -> None:
    shown = json.loads(run(clone, "dvc", "metrics", "show", "--json"))
    files = shown[""]["data"]
    stems = {Path(path).stem for path in files}
    assert stems >= {"prepare", "pretrain", "label", "select_views", "train", "cluster", "raw", "refined"}
    headline = {path: content["data"] for path, content in files.items() if content["data"]}
    assert {path: sorted(figures[Path(path).stem]) for path, figures in headline.items()} == {
        f"metrics/evaluate/{name}.json": ["accuracy", "miou"] for name in ("raw", "refined")
    }
    for path in files:
        assert Path(path).stem in read_metrics(clone / path), f"{path}: its key is not its name"
    for line in run(clone, "dvc", "metrics", "show").splitlines():
        assert len(line) <= 120


# What an edit costs


def _changed(folder: Path) -> set[str]:
    with contextlib.chdir(folder), Repo() as repo:  # as `dvc status --json`, without a process for each
        return set(repo.status())


@contextlib.contextmanager
def _edited(path: Path, text: str) -> Iterator[None]:
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")


def test_afterwards_nothing_is_to_be_done(clone: Path) -> None:
    assert _changed(clone) == set()
    shown = run(clone, "dvc", "repro")
    assert "Running stage" not in shown
    assert "Data and pipelines are up to date." in shown


EVALUATE = {"evaluate@raw", "evaluate@refined"}
CODE = [
    ("stages/dataset/decode.py", {"prepare"}),
    ("stages/readers/demo/painting.py", {"prepare"}),
    ("stages/readers/folder/folder.py", set()),
    ("stages/pretraining/moco.py", {"pretrain"}),
    ("stages/checkpoints/published.py", {"pretrain"}),
    ("stages/imaging/photometric.py", {"pretrain", "embed", "train", "cluster", "predict"}),
    ("stages/backbone/batch_norm.py", {"pretrain", "embed", "train", "cluster", "predict"}),
    ("stages/clustering/kmeans.py", {"label", "select_views", "train", "cluster", *EVALUATE}),
    ("stages/pseudo_labels/centres.py", {"label"}),
    ("stages/pseudo_labels/pyramid.py", {"embed", "label", "select_views", "train", "report"}),
    ("stages/training/losses.py", {"train"}),
    ("stages/final_clusters/sampling.py", {"cluster"}),
    ("stages/predict.py", {"predict"}),
    ("stages/postprocessing/dense_crf.py", {"refine"}),
    ("stages/scoring/metrics.py", EVALUATE),
    ("stages/reporting/page.html", {"report"}),
    ("names.yaml", {"report"}),
    ("stages/core/distributed.py", set(STAGES) - {"prepare"}),
]


@pytest.mark.parametrize(("path", "expected"), CODE, ids=[path for path, _ in CODE])
def test_what_an_edit_of_code_costs(clone: Path, path: str, expected: set[str]) -> None:
    with _edited(clone / path, (clone / path).read_text(encoding="utf-8") + "\n# a comment\n"):
        assert _changed(clone) == expected


def test_an_edit_of_neutral_code_costs_nothing(clone: Path) -> None:
    with contextlib.ExitStack() as edits:
        neutral = [path for room in (*NEUTRAL_ROOMS, "stages/tools") for path in files_below(room)]
        for path in neutral:
            text = (clone / path).read_text(encoding="utf-8") + "\n# a comment\n"
            edits.enter_context(_edited(clone / path, text))
        assert _changed(clone) == set()


# Beside `report`, which lists every setting.
PARAMS: list[tuple[dict[str, Any], set[str]]] = [
    ({"seed": 7}, {"pretrain", "label", "train", "cluster", *EVALUATE}),
    ({"global_k": 5}, {"label", "train"}),
    ({"label.centres": "kmeans"}, {"label"}),
    ({"pretrain.init_sha256": "0" * 64}, {"pretrain"}),
    ({"select_ratio": 0.5}, {"select_views"}),
    ({"train.image_loss.weight": 0.5}, {"train"}),
    ({"refine.iterations": 2}, {"refine"}),
    ({"size_px": 48}, {"prepare", "train", "cluster", "predict"}),
    ({"embed.image_px": 48}, {"embed"}),
    ({"prepare.demo.num_val": 3}, {"prepare"}),
    ({"preset": "mine"}, set()),
]


@pytest.mark.parametrize(("changes", "expected"), PARAMS, ids=[",".join(changes) for changes, _ in PARAMS])
def test_what_a_setting_costs(
    clone: Path, tmp_path: Path, tiny: dict[str, Any], changes: dict[str, Any], expected: set[str]
) -> None:
    assert all(tiny.get(key) != value for key, value in changes.items())
    edited = write_params(tmp_path / "params.yaml", {**tiny, **changes})
    with _edited(clone / "params.yaml", edited.read_text(encoding="utf-8")):
        assert _changed(clone) == {*expected, "report"}


def test_a_neutral_setting_costs_nothing(clone: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    changes = {"device": "auto", "runtime.num_workers": 2, "runtime.checkpoint_seconds": 5}
    edited = write_params(tmp_path / "params.yaml", {**tiny, **changes})
    with _edited(clone / "params.yaml", edited.read_text(encoding="utf-8")):
        assert _changed(clone) == set()


def test_a_comment_in_params_yaml_costs_nothing(clone: Path) -> None:
    content = (clone / "params.yaml").read_text(encoding="utf-8")
    with _edited(clone / "params.yaml", f"{content}# a comment\n"):
        assert _changed(clone) == set()


@pytest.mark.parametrize("folder", ["stages/postprocessing", "data/images/train"])
def test_byte_code_costs_nothing(clone: Path, folder: str) -> None:
    with _edited(clone / folder / "__pycache__/made_up.pyc", "x"):
        assert _changed(clone) == set()


def test_a_lost_output_comes_back_without_running(clone: Path) -> None:
    before = _hash(clone / "data/predictions.npy")
    (clone / "data/predictions.npy").unlink()
    shown = run(clone, "dvc", "repro", "predict")
    assert "Running stage" not in shown
    assert _hash(clone / "data/predictions.npy") == before


# Each stage alone


@dataclass(frozen=True)
class Alone:
    """What became of a stage in a folder that holds what it names and nothing else."""

    folder: Path
    returncode: int
    shown: str


# For each key of params.yaml another value: what a stage does not name must not reach its result.
OTHER: dict[str, Any] = {
    "preset": "other",
    "seed": 9,
    "size_px": 48,
    "global_k": 5,
    "pixel_k": 4,
    "select_ratio": 0.5,
    "crop_ratio": 0.6,
    "precision": "bfloat16",
    "deterministic": False,
    "compile": True,
    "backbone.width": 12,
    "prepare.train_px": 44,
    "pretrain.lr": 0.5,
    "pretrain.micro_batch": 4,
    "embed.batch_size": 7,
    "label.iterations": 3,
    "select_views.scope": "per_view",
    "train.lr": 0.5,
    "train.micro_batch": 2,
    "cluster.iterations": 3,
    "predict.batch_size": 1,
    "refine.iterations": 2,
    "evaluate.baseline_restarts": 1,
    "report.num_images": 1,
}


def test_every_key_has_another_value(tiny: dict[str, Any]) -> None:
    keys = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    assert {key.split(".")[0] for key in OTHER} == set(keys) - set(NEUTRAL_KEYS)
    defaults = {"preset": "demo", "evaluate.baseline_restarts": 3, **tiny}
    assert not [key for key, value in OTHER.items() if defaults.get(key) == value]


@pytest.fixture(scope="module")
def alone(clone: Path, tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]) -> dict[str, Alone]:
    """Every stage, run once more, from the inputs that the clone has, with other values of all other keys."""
    shared = needed_by_neutral_rooms()  # here, for Python's parser does not bear several threads

    def run_alone(name: str) -> Alone:
        stage, folder = STAGES[name], tmp_path_factory.getbasetemp() / "alone" / name.replace("@", "_")
        folder.mkdir(parents=True)
        code = {path for part in (*stage.code_deps(), *NEUTRAL_ROOMS) for path in files_below(part)}
        copy([*stage.data_deps, "stages/__init__.py", *(code | shared)], clone, folder)
        unnamed = {key: value for key, value in OTHER.items() if key.split(".")[0] not in stage.params}
        write_params(folder / "params.yaml", {**tiny, **unnamed})
        ended = subprocess.run(
            stage.cmd.split(),
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
            check=False,
        )
        return Alone(folder, ended.returncode, (ended.stdout + ended.stderr)[-3000:])

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(STAGES, pool.map(run_alone, STAGES), strict=True))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_needs_what_it_names_and_nothing_else(alone: dict[str, Alone], name: str) -> None:
    result = alone[name]
    assert result.returncode == 0, result.shown
    if "data/truth" not in (*STAGES[name].deps, *STAGES[name].outs):
        assert not (result.folder / "data/truth").exists()


@pytest.mark.parametrize("name", STAGES)
def test_a_second_run_gives_the_same_bytes(clone: Path, alone: dict[str, Alone], name: str) -> None:
    stage = STAGES[name]
    for path in (*stage.outs, *stage.uncached):
        assert _hash(alone[name].folder / path) == _hash(clone / path), path


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_writes_what_it_names_and_nothing_else(alone: dict[str, Alone], name: str) -> None:
    stage, folder = STAGES[name], alone[name].folder
    written = {
        str(path.relative_to(folder))
        for top in ("data", "models", "metrics")
        for path in (folder / top).rglob("*")
    }
    named = (*stage.data_deps, *stage.outs, *stage.uncached)
    for path in sorted(written):
        assert any(
            path == out or path.startswith(f"{out}/") or out.startswith(f"{path}/") for out in named
        ), f"{name} left {path}"
    beside = {path.name for path in folder.iterdir()}
    assert beside <= {"data", "models", "metrics", "stages", "params.yaml", "names.yaml", ".state"}


# Experiments; last, because they change the clone


def test_an_experiment_reuses_what_its_setting_does_not_touch(clone: Path) -> None:
    before = read_metrics(clone / "metrics/select_views.json")["select_views"]["kept_views"]
    shown = run(clone, "dvc", "exp", "run", "--set-param", "select_ratio=0.5", "select_views")
    ran = re.findall(r"Running stage '([^']+)'", shown)
    assert ran == ["select_views"]
    assert YAML(typ="safe").load((clone / "params.yaml").read_text())["select_ratio"] == 0.5
    assert read_metrics(clone / "metrics/select_views.json")["select_views"]["kept_views"] > before
    assert json.loads(run(clone, "dvc", "params", "diff", "--json"))
