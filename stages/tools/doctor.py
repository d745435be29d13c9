"""Find what a crash left behind in a repository, print remedies, and apply the safe ones with --fix.

For results and queued experiments use DVC itself: `dvc status`, `dvc queue status`.

Exit codes: 0 if nothing is left to do, 1 if there are findings (with --fix: unresolved ones), 2 for invalid
arguments.
"""

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from stages.runtime.script import run
from stages.settings.errors import UserError
from stages.tools.surroundings import git_obstacle, obstacles

FOUND = 1
ARTEFACTS = ("data", "models", "metrics", ".state")
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # name pattern of stages.core.artefacts
EXPERIMENTS = (".dvc/tmp/exps/standalone", ".dvc/tmp/exps")
RWLOCKS = (".dvc/tmp/rwlock", ".dvc/tmp/exps/rwlock")
HARDLINK_LOCKS = (".dvc/tmp/lock", ".dvc/tmp/rwlock.lock")
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """A problem and its remedy."""

    what: str  # path or process, and its problem
    remedy: str  # a command, if possible
    fix: Callable[[], object] | None = None  # applies the remedy; None if that could lose data


def main(argv: Sequence[str] | None = None) -> None:
    """Print every finding with its remedy."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.doctor", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="root of the repository (default: .)")
    parser.add_argument("--fix", action="store_true", help="apply the remedies that cannot lose data")
    args = parser.parse_args(argv)
    if not (args.root / ".dvc").is_dir():
        raise UserError(f"{args.root}: not a DVC repository (no .dvc); pass the repository root with --root")
    if busy := working(args.root):
        for process in busy:
            print(f"process {process.pid} ({describe(process)}) is running in this repository")
        print("wait until it exits or stop it (kill PID), then run this command again")
        sys.exit(FOUND)
    left = 0
    for finding in _findings(args.root):
        print(f"- {finding.what}")
        if args.fix and finding.fix is not None:
            finding.fix()
            print(f"  done: {finding.remedy}")
        else:
            print(f"  to do: {finding.remedy}")
            left += 1
    if left:
        sys.exit(FOUND)
    print("all findings are fixed" if args.fix else "no problems found")


def _findings(root: Path) -> Iterator[Finding]:
    """Yield the findings in the order in which they must be fixed; later fixes rely on earlier ones."""
    yield from (Finding(obstacle.what, obstacle.remedy) for obstacle in obstacles(root))
    yield from orphans(root)
    yield from locks(root)
    yield from temporaries(root)
    yield from states(root)
    yield from experiments(root)
    if git_obstacle(root) is None:
        yield from stashes(root)


def temporaries(root: Path) -> Iterator[Finding]:
    """Find partially written temporary files and folders next to the outputs."""
    for top in ARTEFACTS:
        for path in sorted((root / top).rglob(".*")):
            if TEMPORARY.fullmatch(path.name) and path.exists():
                yield Finding(
                    f"{path.relative_to(root)}: incomplete temporary data ({_size(path)}); nothing reads it",
                    f"rm -r {path.relative_to(root)}",
                    partial(_remove, path),
                )


def states(root: Path) -> Iterator[Finding]:
    """Find the saved states of interrupted stages."""
    for stage in sorted(path for path in (root / ".state").glob("*") if path.is_dir()):
        folders = sorted(stage.iterdir(), key=lambda folder: -folder.stat().st_mtime)
        saved = [folder for folder in folders if (folder / "state.safetensors").exists()]
        for folder in folders:
            name = folder.relative_to(root)
            if folder not in saved:
                yield Finding(
                    f"{name}: empty state of a run of {stage.name} that ended before its first save",
                    f"rm -r {name}",
                    partial(_remove, folder),
                )
            elif folder == saved[0]:
                yield Finding(
                    f"{name}: {stage.name} was interrupted and saved its state ({_size(folder)})",
                    "`dvc repro` resumes from it if code, settings and inputs are unchanged; "
                    f"to discard it: rm -r {name}",
                )
            else:
                yield Finding(
                    f"{name}: older state of {stage.name}, saved with different code, settings or inputs "
                    f"({_size(folder)})",
                    f"rm -r {name}, unless you plan to return to that version",
                )


def experiments(root: Path) -> Iterator[Finding]:
    """Find the repository copies of killed `--temp` and queued experiments."""
    for parent in EXPERIMENTS:
        for folder in sorted((root / parent).glob("tmp*")):
            name = folder.relative_to(root)
            yield Finding(
                f"{name}: repository copy of a killed experiment ({_size(folder)}); DVC does not reuse it "
                "(the saved states of its stages are in .state)",
                f"rm -r {name}",
                partial(_remove, folder),
            )


def stashes(root: Path) -> Iterator[Finding]:
    """Find edits on the current commit that a killed `dvc exp run` left in the git stash."""
    head = _git(root, "rev-parse", "HEAD").strip()
    for line in _git(root, "stash", "list", "--format=%gd %P %gs").splitlines():
        name, parent, *_ = line.split(" ")
        if parent == head:
            files = _git(root, "diff", "--name-only", parent, name).split()
            yield Finding(
                f"{name}: the git stash holds edits of {', '.join(files)}; `dvc exp run` stashes edits "
                "at its start and does not restore them if it is killed",
                f"git stash show -p '{name}'; to restore the edits: git stash pop '{name}'",
            )


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def locks(root: Path) -> Iterator[Finding]:
    """Find lock files that block later commands or belong to dead processes."""
    for name in RWLOCKS:
        path = root / name
        if path.exists() and (wrong := _wrong(path)):
            yield Finding(f"{name}: {wrong}", f"rm {name}", path.unlink)
    for name in HARDLINK_LOCKS:
        path = root / name
        # With core.hardlink_lock a second hard link marks the file as locked; otherwise DVC locks the
        # file itself, and a leftover file is harmless.
        if path.exists() and path.stat().st_nlink > 1:
            yield Finding(
                f"{name}: lock (core.hardlink_lock) of a killed DVC process or of another machine",
                f"if no other machine uses this folder: rm {name} .dvc/tmp/*.lock",
            )


def _wrong(rwlock: Path) -> str:
    try:
        content = json.loads(rwlock.read_text(encoding="utf-8"))
        held = sorted({*content.get("write", {}), *content.get("read", {})})
    except (ValueError, AttributeError):
        return "damaged by a killed DVC process; every DVC command fails with 'Unable to read RWLock-file'"
    return f"held by a dead DVC process for {', '.join(held)}" if held else ""


def working(root: Path) -> list[psutil.Process]:
    """List running DVC and stage processes in the repository and its copies, without orphans."""
    return [process for process in _inside(root) if _is_dvc(process) or _is_stage(process)]


def orphans(root: Path) -> Iterator[Finding]:
    """Find stages whose DVC process is dead: their outputs go unrecorded and they lock their state."""
    for process in _inside(root, orphaned=True):
        yield Finding(
            f"process {process.pid} ({describe(process)}): the DVC process that started it is dead, so its "
            "result will not be recorded",
            f"kill {process.pid}; `dvc repro` then resumes from its saved state",
            partial(_end, process),
        )


def describe(process: psutil.Process) -> str:
    """Return the command line without the path of the interpreter."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return " ".join([Path(words[0]).name, *words[1:4]]) if words else process.name()
    return "already exited"


def _inside(root: Path, *, orphaned: bool = False) -> Iterator[psutil.Process]:
    root = root.resolve()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # already exited, or owned by another user
            if Path(process.cwd()).is_relative_to(root) and _is_orphan(process) == orphaned:
                yield process


def _is_dvc(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "dvc" in [Path(word).name for word in process.cmdline()[:3]]
    return False


def _is_stage(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        return module.startswith("stages.") and not module.startswith("stages.tools.")
    return False


def _is_orphan(process: psutil.Process) -> bool:
    started_by_dvc = "DVC_STAGE" in process.environ()
    return _is_stage(process) and started_by_dvc and not any(_is_dvc(parent) for parent in process.parents())


def _end(process: psutil.Process) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    run(main)
