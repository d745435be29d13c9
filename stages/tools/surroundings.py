"""What about git, or the path of the repository, keeps DVC's experiments from working."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Obstacle:
    """A cause, and what to do about it."""

    what: str
    remedy: str


def obstacles(root: Path) -> Iterator[Obstacle]:
    """Yield what keeps `dvc exp run --temp`, `--queue` and `make table` from working; `dvc repro` may work.

    Args:
        root: folder of the repository.
    """
    if (broken := git_obstacle(root)) is not None:
        yield broken
        return
    if git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        yield Obstacle(
            "this clone is shallow (git clone --depth), and DVC loses temporary and queued experiments in it",
            "git fetch --unshallow",
        )
    # DVC takes no name that git would make up, and fails where files that git tracks have edits.
    if git(root, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT").returncode:
        yield Obstacle(
            "git knows no name and address of yours, with which DVC commits edits for temporary and queued "
            "experiments",
            "git config --global user.name NAME && git config --global user.email ADDRESS",
        )
    place = str(root.resolve())
    if "#" in place or not place.isascii():
        sign = next(sign for sign in place if sign == "#" or not sign.isascii())
        yield Obstacle(
            f"{place}: has {sign!r} in its path, with which DVC cannot run temporary or queued experiments",
            "move the repository to a path of plain letters and digits; `dvc repro` and plain `dvc exp run` "
            "work here",
        )


def uncommitted_code(root: Path) -> str:
    """A hash of how the code that stages run differs from the last commit; empty if it does not.

    Of files that git does not track, the names count. Where git does not work (`git_obstacle`), it is empty.
    """
    if git_obstacle(root) is not None:
        return ""
    places = ("dvc.yaml", "stages", ":(exclude)stages/tools")
    changed = git(root, "diff", "HEAD", "--", *places).stdout
    changed += git(root, "ls-files", "--others", "--exclude-standard", "--", *places).stdout
    return hashlib.sha256(changed.encode()).hexdigest() if changed else ""


def git_obstacle(root: Path) -> Obstacle | None:
    """Why git does not work here; None if it does."""
    if shutil.which("git") is None:
        return Obstacle(
            "git is not installed",
            "install it with the package manager of your system; without it only `dvc repro` works, after "
            "`dvc config core.no_scm true`",
        )
    asked = git(root, "rev-parse", "--is-inside-work-tree")
    if asked.returncode == 0:
        return None
    if "dubious ownership" in asked.stderr:
        place = root.resolve()
        return Obstacle(
            f"{place}: belongs to another user, so git does not touch it",
            f"git config --global --add safe.directory {place}",
        )
    if "not a git repository" in asked.stderr:
        return Obstacle(
            "this folder has no git history, as after the download of a ZIP file",
            "git init && git add -A && git commit -m start; or only `dvc repro`, after "
            "`dvc config core.no_scm true`",
        )
    return Obstacle(f"git fails here: {asked.stderr.strip()}", "repair what git names")


def git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run git in a folder; messages are in English."""
    return subprocess.run(
        ["git", *words],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
