"""The Makefile, run with a stand-in for Python that shows its arguments."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.datasets import REPOSITORY

PATHS = ["/data/photos", "~/my photos", "/tmp/cost $5", "/tmp/$(HOME)", "it's", 'a "b" `c` \\ d', "$$"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository whose environment is there."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv/installed").touch()
    return tmp_path


def _make(folder: Path, *words: str) -> list[str]:
    command = ["make", "--silent", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()


def test_before_the_environment_is_created_it_is_said_what_that_takes(folder: Path) -> None:
    (folder / ".venv/installed").unlink()
    said = _make(folder, "preset", "NAME=demo", "PYTHON=.venv/bin/python")
    line = "creating or updating .venv: some minutes, 8 GB"
    assert said.index(line) < said.index("venv") < said.index("stages.tools.preset")
    assert line not in _make(folder, "preset", "NAME=demo"), "only once"


def test_git_leaves_a_link_to_an_environment_alone(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".venv").symlink_to(tmp_path)
    subprocess.run(["git", "check-ignore", "--quiet", ".venv"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_arrives_as_it_was_given(folder: Path, path: str) -> None:
    said = _make(folder, "preset", "NAME=folder", f"DATA={path}", "FAST=1")
    assert said == ["-m", "stages.tools.preset", "folder", "--data", path, "--no-estimate"]


def test_without_data_none_is_passed_on(folder: Path) -> None:
    assert _make(folder, "preset", "NAME=demo") == ["-m", "stages.tools.preset", "demo"]
