"""From one person to another: remotes, clones without artefacts, experiments on data elsewhere."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from stages.core.artefacts import with_details
from tests.datasets import make_folder
from tests.pipeline.commands import environment, run
from tests.torture import hashes

pytestmark = pytest.mark.xdist_group("pipeline")  # they share one run of the pipeline


@pytest.fixture(scope="module")
def mine(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with its cache, as committed."""
    folder = tmp_path_factory.mktemp("handover") / "mine"
    shutil.copytree(clone, folder)
    run(folder, "git", "checkout", "--quiet", "--", ".")
    return folder


@pytest.fixture(scope="module")
def remote(mine: Path) -> Path:
    """A folder to which everything was pushed."""
    folder = mine.parent / "remote"
    run(mine, "dvc", "remote", "add", "--default", "store", str(folder))
    run(mine, "git", "commit", "--quiet", "--all", "--message", "remote")
    run(mine, "dvc", "push")
    return folder


def _clone(mine: Path, name: str) -> Path:
    run(mine, "git", "clone", "--quiet", str(mine), str(mine.parent / name))
    return mine.parent / name


def _figures(folder: Path, experiment: str, stage: str) -> dict[str, float]:
    """Of one stage; DVC keeps an experiment as a commit."""
    names = run(folder, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (name,) = (name for name in names if name.endswith(f"/{experiment}"))
    return with_details(json.loads(run(folder, "git", "show", f"{name}:metrics/{stage}.json"))[stage])


def test_what_is_pushed_can_be_pulled(mine: Path, remote: Path) -> None:
    yours = _clone(mine, "pulled")
    assert not (yours / "data/images").exists()
    run(yours, "dvc", "pull")
    for path in ("data/images/train/images.npy", "models/segmenter.safetensors", "metrics/report/index.html"):
        assert (yours / path).read_bytes() == (mine / path).read_bytes(), path
    assert json.loads(run(yours, "dvc", "status", "--json")) == {}


def test_a_clone_takes_what_it_needs_and_runs_what_changed(mine: Path, remote: Path) -> None:
    """`dvc repro --pull` with no artefact there: one stage runs, and the large array of before stays away."""
    yours = _clone(mine, "partly")
    text = (yours / "params.yaml").read_text(encoding="utf-8")
    changed = re.sub(r'^"select_ratio": 0.4', '"select_ratio": 0.5', text, flags=re.MULTILINE)
    assert changed != text
    (yours / "params.yaml").write_text(changed, encoding="utf-8")
    shown = run(yours, "dvc", "repro", "--pull", "--allow-missing", "select_views")
    assert re.findall(r"Running stage '([^']+)'", shown) == ["select_views"]
    assert (yours / "data/labels.safetensors").exists()
    assert not (yours / "data/embeddings.npy").exists()


def test_forcing_changes_nothing(mine: Path) -> None:
    before = (mine / "dvc.lock").read_bytes()
    shown = run(mine, "dvc", "repro", "--force", "--single-item", "select_views")
    assert re.findall(r"Running stage '([^']+)'", shown) == ["select_views"]
    assert (mine / "dvc.lock").read_bytes() == before


def test_an_experiment_in_a_copy_finds_data_outside_the_repository(mine: Path) -> None:
    """The path is relative to the repository, and the copy lies elsewhere."""
    make_folder(mine.parent / "photos", num_train=16)
    before = hashes(mine)
    settings = {"prepare.reader": "folder", "prepare.path": "../photos", "pixel_k": "3"}
    flags = [word for key, value in settings.items() for word in ("--set-param", f"{key}={value}")]
    run(mine, "dvc", "exp", "run", "--temp", "--name", "outside", *flags, "prepare")
    assert _figures(mine, "outside", "prepare")["train_images"] == 16
    assert _figures(mine, "outside", "prepare")["classes"] == 3, "those of the folder, not of the demo"
    assert hashes(mine) == before, "the workspace is left alone"


def test_two_workers_take_two_queued_experiments(mine: Path) -> None:
    for ratio in ("0.3", "0.6"):
        settings = ("--name", f"ratio-{ratio[-1]}", "--set-param", f"select_ratio={ratio}")
        run(mine, "dvc", "exp", "run", "--queue", *settings, "select_views")
    subprocess.run(
        ["dvc", "queue", "start", "--jobs", "2"],
        cwd=mine,
        env=environment(mine),
        stdout=subprocess.DEVNULL,  # the workers keep it open
        stderr=subprocess.DEVNULL,
        check=True,
    )
    patience = time.monotonic() + 120
    while time.monotonic() < patience:
        kept = run(mine, "git", "for-each-ref", "--format=%(refname)", "refs/exps")
        if all(f"/ratio-{number}\n" in kept for number in (3, 6)):
            break
        time.sleep(1)
    else:
        pytest.fail(run(mine, "dvc", "queue", "status"))
    kept = [_figures(mine, name, "select_views")["kept_views"] for name in ("ratio-3", "ratio-6")]
    assert kept[0] < kept[1]
