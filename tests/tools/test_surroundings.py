"""Where a repository lies and how it came: each obstacle with its true cause, on real git."""

import subprocess
from pathlib import Path

import pytest

from stages.tools import preset, surroundings
from stages.tools.composing import compose
from stages.tools.surroundings import git_obstacle, obstacles
from tests.datasets import REPOSITORY

IDENTITY = [f"GIT_{who}_{key}" for who in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")]


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name for commits, whether or not this machine has one."""
    for name in IDENTITY:
        monkeypatch.setenv(name, "t@localhost")


def _repository(path: Path, commits: int = 2) -> Path:
    path.mkdir(parents=True)
    subprocess.run(["git", "init", "-q"], cwd=path, check=True)
    for number in range(commits):
        command = ["git", "commit", "-q", "--allow-empty", "-m", str(number)]
        subprocess.run(command, cwd=path, check=True)
    return path


def test_a_whole_clone_has_no_obstacle(tmp_path: Path) -> None:
    assert list(obstacles(_repository(tmp_path / "plain folder"))) == []


def test_git_without_a_name_for_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where git would make one up, or takes an address from the environment: DVC does not."""
    root = _repository(tmp_path / "plain folder")
    for name in IDENTITY:
        monkeypatch.delenv(name)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("EMAIL", "t@localhost")
    (found,) = obstacles(root)
    assert found.what.startswith("git knows no name and address of yours")
    assert "git config --global user.name" in found.remedy
    for key in ("user.name", "user.email"):
        subprocess.run(["git", "config", key, "t@localhost"], cwd=root, check=True)
    assert list(obstacles(root)) == []


def test_a_shallow_clone(tmp_path: Path) -> None:
    origin = _repository(tmp_path / "origin")
    command = ["git", "clone", "-q", "--depth", "1", origin.as_uri(), str(tmp_path / "clone")]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = obstacles(tmp_path / "clone")
    assert found.what.startswith("this clone is shallow (git clone --depth)")
    assert found.remedy == "git fetch --unshallow"


@pytest.mark.parametrize(("name", "sign"), [("a#b", "'#'"), ("b\u00fcro", "'\u00fc'")])
def test_a_path_with_signs_that_dvc_cannot_take(tmp_path: Path, name: str, sign: str) -> None:
    (found,) = obstacles(_repository(tmp_path / name))
    assert f"has {sign} in its path" in found.what
    assert "`dvc repro` and plain `dvc exp run` work here" in found.remedy


def test_a_folder_without_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (found,) = obstacles(tmp_path)
    assert found.what == "this folder has no git history, as after the download of a ZIP file"
    assert "dvc config core.no_scm true" in found.remedy


def test_git_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings.shutil, "which", lambda _: None)
    (found,) = obstacles(tmp_path)
    assert found.what == "git is not installed"


def test_a_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = subprocess.CompletedProcess(
        [], 128, "", "fatal: detected dubious ownership in repository at ..."
    )
    monkeypatch.setattr(surroundings, "git", lambda *_: refused)
    found = git_obstacle(tmp_path)
    assert found is not None
    assert found.what.endswith(": belongs to another user, so git does not touch it")
    assert found.remedy == f"git config --global --add safe.directory {tmp_path}"


def test_another_fault_of_git_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = subprocess.CompletedProcess([], 128, "", "fatal: bad config line 1\n")
    monkeypatch.setattr(surroundings, "git", lambda *_: broken)
    found = git_obstacle(tmp_path)
    assert found is not None
    assert found.what == "git fails here: fatal: bad config line 1"


def test_a_preset_names_the_cause_and_not_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("seed: 0\n")
    monkeypatch.setattr(preset, "compose", lambda name: compose(name, REPOSITORY / "presets"))
    with pytest.raises(preset.UserError) as raised:
        preset.main(["demo"])
    assert "this folder has no git history" in str(raised.value)
    assert "uncommitted" not in str(raised.value)
