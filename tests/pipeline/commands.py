"""dvc and git as a user starts them, in a repository of a test."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.datasets import REPOSITORY
from tests.pipeline.pipeline_file import read_stages

BIN = Path(sys.executable).parent


def environment(folder: Path) -> dict[str, str]:
    """Of a command: a name for commits, DVC's site cache beside the folder, no settings of the caller's."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key != "PYTHONPATH" and not key.startswith(("DVC_", "GIT_"))
    }
    name = {"NAME": "test", "EMAIL": "test@example.org"}
    git = {f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in name.items()}
    cache = {"DVC_SITE_CACHE_DIR": str(folder.parent / "site_cache"), "DVC_NO_ANALYTICS": "1"}
    return {**kept, **git, **cache, "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "OMP_NUM_THREADS": "1"}


def run(folder: Path, *command: str, code: int = 0) -> str:
    """All that a command prints; it has to end with `code`."""
    ended = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    shown = ended.stdout + ended.stderr
    assert ended.returncode == code, f"{' '.join(command)} ended with {ended.returncode}:\n{shown[-5000:]}"
    return shown


def copy(sources: Iterable[str], origin: Path, folder: Path) -> None:
    """Copy files and folders to the same places below another folder."""
    for path in sources:
        source, target = origin / path, folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)


def make_clone(folder: Path) -> None:
    """A git repository with all that git tracks or would, but no results: neither dvc.lock nor metrics."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git repository, so nothing says what a clone would hold")
    made = {"dvc.lock", *(path for stage in read_stages().values() for path in stage.uncached)}
    files = [path for path in listed.stdout.splitlines() if (REPOSITORY / path).is_file()]
    copy([path for path in files if path not in made], REPOSITORY, folder)
    run(folder, "git", "init", "--quiet")
