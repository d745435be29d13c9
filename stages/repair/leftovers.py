"""What stages and experiments leave when they are killed; to be asked about only when none is at work."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.repair.finding import Finding

ARTEFACTS = ("data", "models", "metrics", ".state")
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as stages.runtime.artefacts names them
EXPERIMENTS = (".dvc/tmp/exps/standalone", ".dvc/tmp/exps")


def temporaries(root: Path) -> Iterator[Finding]:
    """Half-written files and folders beside the outputs."""
    for top in ARTEFACTS:
        for path in sorted((root / top).rglob(".*")):
            if TEMPORARY.fullmatch(path.name) and path.exists():
                yield Finding(
                    f"{path.relative_to(root)}: half-written ({_size(path)}); nothing will ever read it",
                    f"rm -r {path.relative_to(root)}",
                    partial(_remove, path),
                )


def states(root: Path) -> Iterator[Finding]:
    """Stages that were interrupted: what they saved, and for which they are waiting."""
    for stage in sorted(path for path in (root / ".state").glob("*") if path.is_dir()):
        folders = sorted(stage.iterdir(), key=lambda folder: -folder.stat().st_mtime)
        saved = [folder for folder in folders if (folder / "state.safetensors").exists()]
        for folder in folders:
            name = folder.relative_to(root)
            if folder not in saved:
                yield Finding(
                    f"{name}: of a run of {stage.name} that ended before it saved anything",
                    f"rm -r {name}",
                    partial(_remove, folder),
                )
            elif folder == saved[0]:
                yield Finding(
                    f"{name}: {stage.name} was interrupted, and saved its state ({_size(folder)})",
                    "`dvc repro` goes on from it, as long as code, settings and inputs are those of then; "
                    f"if you want none of it: rm -r {name}",
                )
            else:
                yield Finding(
                    f"{name}: an older state of {stage.name}, of other code, settings or inputs "
                    f"({_size(folder)})",
                    f"rm -r {name}, unless you mean to go back to those",
                )


def experiments(root: Path) -> Iterator[Finding]:
    """Copies of the repository in which `--temp` and queued experiments ran, and were killed."""
    for parent in EXPERIMENTS:
        for folder in sorted((root / parent).glob("tmp*")):
            name = folder.relative_to(root)
            yield Finding(
                f"{name}: the copy in which a killed experiment ran ({_size(folder)}); DVC will not use it "
                "again (what its stages saved lies in .state)",
                f"rm -r {name}",
                partial(_remove, folder),
            )


def stashes(root: Path) -> Iterator[Finding]:
    """Edits that a `dvc exp run` put away for a second, and was killed: they lie on the commit of now."""
    head = _git(root, "rev-parse", "HEAD").strip()
    for line in _git(root, "stash", "list", "--format=%gd %P %gs").splitlines():
        name, parent, *_ = line.split(" ")
        if parent == head:
            files = _git(root, "diff", "--name-only", parent, name).split()
            yield Finding(
                f"{name}: edits of {', '.join(files)} lie in git's stash; `dvc exp run` puts them there "
                "while it starts, and leaves them if it is killed",
                f"git stash show -p '{name}'; if you miss them: git stash pop '{name}'",
            )


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
