"""Look at a repository after a crash, say what to do, and do what is safe when told to.

Results and queued experiments are DVC's to tell: `dvc status`, `dvc queue status`.

Ends with 0 if nothing was found, with 1 if something was (and, with --fix, is left), with 2 if it was called
wrongly.
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

FOUND = 1
ARTEFACTS = ("data", "models", "metrics", ".state")
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as stages.core.artefacts names them
EXPERIMENTS = (".dvc/tmp/exps/standalone", ".dvc/tmp/exps")
RWLOCKS = (".dvc/tmp/rwlock", ".dvc/tmp/exps/rwlock")
HARDLINK_LOCKS = (".dvc/tmp/lock", ".dvc/tmp/rwlock.lock")
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """What was found, and the way out."""

    what: str  # path or process, and what is wrong with it
    remedy: str  # as a command, where there is one
    fix: Callable[[], object] | None = None  # does what `remedy` says; None where that may lose something


def main(argv: Sequence[str] | None = None) -> None:
    """Print every finding with its remedy."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.doctor", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="of the repository (default: this folder)")
    parser.add_argument("--fix", action="store_true", help="do what cannot lose anything, and say so")
    args = parser.parse_args(argv)
    if not (args.root / ".dvc").is_dir():
        raise UserError(f"{args.root}: has no .dvc, so it is no DVC repository; name its root with --root")

    if busy := working(args.root):
        for process in busy:
            print(f"process {process.pid} ({describe(process)}) is at work here")
        print("wait until it has ended, or end it (kill PID), and ask again")
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
    print("nothing is left to be done" if args.fix else "nothing is wrong here")


def _findings(root: Path) -> Iterator[Finding]:
    """In the order in which they have to be put right; the later ones need the earlier ones done."""
    yield from orphans(root)
    yield from locks(root)
    yield from temporaries(root)
    yield from states(root)
    yield from experiments(root)
    yield from stashes(root)


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
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def locks(root: Path) -> Iterator[Finding]:
    """Lock files that stop every later command, or that speak of processes which are gone."""
    for name in RWLOCKS:
        path = root / name
        if path.exists() and (wrong := _wrong(path)):
            yield Finding(f"{name}: {wrong}", f"rm {name}", path.unlink)
    for name in HARDLINK_LOCKS:
        path = root / name
        # With core.hardlink_lock the file itself is the lock, under a second name; else it is no more than
        # a place to lock, and harmless.
        if path.exists() and path.stat().st_nlink > 1:
            yield Finding(
                f"{name}: the lock (core.hardlink_lock) of a dvc that is not on this machine, or was killed",
                f"if no other machine works on this folder: rm {name} .dvc/tmp/*.lock",
            )


def _wrong(rwlock: Path) -> str:
    try:
        content = json.loads(rwlock.read_text(encoding="utf-8"))
        held = sorted({*content.get("write", {}), *content.get("read", {})})
    except (ValueError, AttributeError):
        return "DVC was killed while it wrote it ('Unable to read RWLock-file'), and no command works now"
    return f"held by a dvc that is gone, for {', '.join(held)}" if held else ""


def working(root: Path) -> list[psutil.Process]:
    """DVC and stages at work in the repository or in a copy under it; not those that are orphans."""
    return [process for process in _inside(root) if _is_dvc(process) or _is_stage(process)]


def orphans(root: Path) -> Iterator[Finding]:
    """Stages whose DVC is gone: nothing will record what they write, and they lock their state."""
    for process in _inside(root, orphaned=True):
        yield Finding(
            f"process {process.pid} ({describe(process)}): outlived the dvc that started it, and nothing "
            "will record its result",
            f"kill {process.pid}; `dvc repro` then goes on from the state that it saved",
            partial(_end, process),
        )


def describe(process: psutil.Process) -> str:
    """Its command, without the path of the interpreter."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return " ".join([Path(words[0]).name, *words[1:4]]) if words else process.name()
    return "ended meanwhile"


def _inside(root: Path, *, orphaned: bool = False) -> Iterator[psutil.Process]:
    root = root.resolve()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
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
