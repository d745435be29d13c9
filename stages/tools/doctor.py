"""Find what a crash left behind in a repository, print remedies, and apply the safe ones with --fix.

It sees the processes of this machine alone. So what a crash has left is named with its remedy, but not
removed, on a disk that other machines may use, and while a stage holds the lock of its state.

For results and queued experiments use DVC itself: `dvc status`, `dvc queue status`.

Exit codes: 0 if nothing is left to do, 1 if there are findings (with --fix: unresolved ones), 2 for invalid
arguments.
"""

import argparse
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from stages.runtime.locks import try_lock
from stages.runtime.script import run
from stages.settings.errors import UserError
from stages.tools.dvc_lock import LOCK, read_lock
from stages.tools.processes import describe, end, is_on_shared_disk, orphaned, working
from stages.tools.surroundings import git, git_obstacle, obstacles

FOUND = 1
STATES = ".state"
ARTEFACTS = ("data", "models", "metrics", STATES)
TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # name pattern of stages.core.artefacts, with the final name
EXPERIMENTS = (".dvc/tmp/exps/standalone", ".dvc/tmp/exps")
RWLOCKS = (".dvc/tmp/rwlock", ".dvc/tmp/exps/rwlock")
HARDLINK_LOCKS = (".dvc/tmp/lock", ".dvc/tmp/rwlock.lock")


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
    # After the orphans: one that was ended holds no lock any more.
    running = [folder for folder in sorted((root / ".state").glob("*/*")) if _is_locked(folder)]
    doubt = "a stage is running" if running else "others may use this disk" if is_on_shared_disk(root) else ""
    yield from locks(root, doubt)
    yield from temporaries(root, doubt)
    yield from states(root, running, doubt)
    yield from experiments(root, doubt)
    if git_obstacle(root) is None:
        yield from stashes(root)


def temporaries(root: Path, doubt: str) -> Iterator[Finding]:
    """Find partially written temporary files and folders next to the outputs.

    Hidden files of other names may be the user's own, such as photographs in a folder below data/.
    """
    outputs = _outputs(root)
    for top in ARTEFACTS:
        for path in sorted((root / top).rglob(".*")):
            match = TEMPORARY.fullmatch(path.name)
            final = path.with_name(match[1]).relative_to(root).as_posix() if match else ""
            if match and path.exists() and (top == STATES or final in outputs):
                what = f"incomplete temporary data ({_size(path)}); nothing reads it"
                yield _left(root, path, what, doubt)


def _outputs(root: Path) -> set[str]:
    """Paths that stages write: those in dvc.yaml, and those of the last run, with all names filled in."""
    pipeline, lock = root / "dvc.yaml", root / LOCK
    found = set(re.findall(r"[\w./-]+", pipeline.read_text(encoding="utf-8"))) if pipeline.exists() else set()
    if lock.exists():
        with suppress(UserError):  # `dvc repro` says that it is damaged
            found |= {out["path"] for stage in read_lock(lock).values() for out in stage.get("outs", [])}
    return found


def states(root: Path, running: Sequence[Path], doubt: str) -> Iterator[Finding]:
    """Find the states of stages that were interrupted, or that run on another machine."""
    for stage in sorted(path for path in (root / ".state").glob("*") if path.is_dir()):
        folders = sorted(stage.iterdir(), key=lambda folder: -folder.stat().st_mtime)
        saved = [folder for folder in folders if (folder / "state.safetensors").exists()]
        for folder in folders:
            name = folder.relative_to(root)
            if folder in running:
                yield Finding(
                    f"{name}: {stage.name} is running, for it holds the lock of its state",
                    "wait until it ends, or end it; it may run on another machine that shares this disk",
                )
            elif folder not in saved:
                what = f"empty state of a run of {stage.name} that ended before its first save"
                yield _left(root, folder, what, doubt)
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


def experiments(root: Path, doubt: str) -> Iterator[Finding]:
    """Find the repository copies of killed `--temp` and queued experiments."""
    for parent in EXPERIMENTS:
        for folder in sorted((root / parent).glob("tmp*")):
            what = (
                f"repository copy of a killed experiment ({_size(folder)}); DVC does not reuse it (the saved "
                "states of its stages are in .state)"
            )
            yield _left(root, folder, what, doubt)


def stashes(root: Path) -> Iterator[Finding]:
    """Find edits on the current commit that a killed `dvc exp run` left in the git stash."""
    head = git(root, "rev-parse", "HEAD").stdout.strip()
    for line in git(root, "stash", "list", "--format=%gd %P %gs").stdout.splitlines():
        name, parent, *_ = line.split(" ")
        if parent == head:
            files = git(root, "diff", "--name-only", parent, name).stdout.split()
            yield Finding(
                f"{name}: the git stash holds edits of {', '.join(files)}; `dvc exp run` stashes edits "
                "at its start and does not restore them if it is killed",
                f"git stash show -p '{name}'; to restore the edits: git stash pop '{name}'",
            )


def _left(root: Path, path: Path, what: str, doubt: str) -> Finding:
    """What a crash has left; with a doubt that nothing uses it there is no fix."""
    name = path.relative_to(root)
    remedy = f"rm -r {name}" if path.is_dir() else f"rm {name}"
    if doubt:
        return Finding(f"{name}: {what}", f"{remedy}, unless a run on another machine is using it ({doubt})")
    return Finding(f"{name}: {what}", remedy, partial(_remove, path))


def _is_locked(folder: Path) -> bool:
    """Whether a stage holds the lock of its state, here or on another machine that shares the disk."""
    try:
        with (folder / "lock").open("r+") as file:
            return not try_lock(file, "doctor")
    except FileNotFoundError:
        return False
    except PermissionError:  # a stage of another user, which may be running
        return True


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _size(path: Path) -> str:
    return f"{sum(each.st_size for each in _stats(path) if stat.S_ISREG(each.st_mode)) / 1e6:.1f} MB"


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Of a file, or of a folder and all in it; a run at work may remove some meanwhile."""
    inside = (Path(top, name) for top, folders, files in os.walk(path) for name in (*folders, *files))
    for each in chain([path], inside):
        with suppress(FileNotFoundError):
            yield each.lstat()


def locks(root: Path, doubt: str) -> Iterator[Finding]:
    """Find lock files that block later commands or belong to dead processes."""
    for name in RWLOCKS:
        path = root / name
        if path.exists() and (wrong := _wrong(path)):
            yield _left(root, path, wrong, doubt)
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


def orphans(root: Path) -> Iterator[Finding]:
    """Find stages whose DVC process is dead."""
    for process in orphaned(root):
        yield Finding(
            f"process {process.pid} ({describe(process)}): the DVC process that started it is dead, so its "
            "result will not be recorded",
            f"kill {process.pid}; `dvc repro` then resumes from its saved state",
            partial(end, process),
        )


if __name__ == "__main__":
    run(main)
