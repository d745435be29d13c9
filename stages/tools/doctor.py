"""Look at a repository after a crash, say what to do, and do what is safe when told to.

A program of its own, as `preset` is. Ends with 0 if nothing was found, with 1 if something was (and, with
--fix, is left), with 2 if it was called wrongly.
"""

import argparse
import contextlib
import hashlib
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
from dvc.exceptions import DvcException
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.runtime.progress import track
from stages.settings.errors import UserError, run


@dataclass(frozen=True)
class Finding:
    """What was found, and the way out.

    Attributes:
        what: the path or process, and what is wrong with it.
        remedy: what to do, as a command where there is one.
        fix: does what `remedy` says; None where that may lose something, or is for the user to decide.
    """

    what: str
    remedy: str
    fix: Callable[[], object] | None = None


FOUND = 1


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
    try:
        with Repo(str(root)) as repo:
            yield from queue(repo)
            yield from cache_objects(repo)
            yield from outputs(repo)
    except DvcException as error:
        yield Finding(f"dvc cannot tell the state of the results: {error}", "do the above, and ask again")


ARTEFACTS = ("data", "models", "metrics", ".state")
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as stages.core.artefacts names them
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


RWLOCKS = (".dvc/tmp/rwlock", ".dvc/tmp/exps/rwlock")
HARDLINK_LOCKS = (".dvc/tmp/lock", ".dvc/tmp/rwlock.lock")


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


PATIENCE_SECONDS = 10.0


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
        return "-m" in words[:-1] and words[words.index("-m") + 1].startswith("stages.") and not _is_us(words)
    return False


def _is_us(words: list[str]) -> bool:
    return words[words.index("-m") + 1].startswith("stages.runtime.")


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


def queue(repo: Repo) -> Iterator[Finding]:
    """Tasks that count as running while no worker is alive; to be asked only when no DVC is at work."""
    if not repo.tmp_dir or not (repo.scm and hasattr(repo.scm, "resolve_rev")):
        return
    tasks = repo.experiments.celery_queue
    for entry in list(tasks.iter_active()):
        name = entry.name or entry.stash_rev[:7]
        yield Finding(
            f"queued experiment {name}: counts as running, but its worker is gone",
            f"dvc queue kill {name} (it is 'Failed' then); dvc queue remove {name}, and queue it again",
            partial(tasks.kill, [name]),
        )


CHUNK_BYTES = 1 << 24


def cache_objects(repo: Repo) -> Iterator[Finding]:
    """Objects of the current results whose content is no longer what their name says."""
    objects = [(name, oid) for name, md5 in _locked(repo).items() for oid in _with_children(repo, md5)]
    for name, oid in track(objects, "cache", unit="object"):
        path = Path(repo.cache.local.oid_to_path(oid))
        if path.exists() and _md5(path) != oid.removesuffix(".dir"):
            yield Finding(
                f"{_relative(path, repo)}: damaged, its content is not that of its name; {name} cannot be "
                "restored from it",
                f"rm {_relative(path, repo)}; `dvc pull` may bring it, and `dvc repro` makes it again",
                partial(_delete_object, path),
            )


def outputs(repo: Repo) -> Iterator[Finding]:
    """Outputs that are missing, or are not what their stage wrote."""
    kept, absent = _locked(repo), []
    for stage, changes in sorted(repo.status().items()):
        changed = {}
        for change in changes:
            if isinstance(change, dict):
                changed.update(change.get("changed outs", {}))
        for name, state in sorted(changed.items()):
            if not (Path(repo.root_dir) / name).exists():
                absent.append(name)
            elif state == "not in cache":
                yield Finding(
                    f"{name}: is what {stage} wrote, but the cache has no copy", f"dvc commit {stage}"
                )
            elif name in kept:
                yield Finding(
                    f"{name}: is not what {stage} wrote; it was changed by hand, or its stage was killed",
                    f"dvc checkout --force {name} brings back what it wrote, dvc repro {stage} runs it again",
                )
            else:
                yield Finding(
                    f"{name}: is not what {stage} wrote; it was changed by hand, or its stage was killed",
                    f"git checkout -- {name} brings back what was committed, dvc repro {stage} runs it again",
                )
    if absent:
        yield Finding(
            f"{', '.join(absent)}: not there",
            "`dvc repro` takes them from the cache or makes them; `dvc pull` brings them from a remote",
        )


def _locked(repo: Repo) -> dict[str, str]:
    """Cached outputs of dvc.lock and their hashes; metrics and plots are left to git."""
    path = Path(repo.root_dir) / "dvc.lock"
    if not path.exists():
        return {}
    try:
        lock = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise UserError(f"dvc.lock: is not YAML ({error}); git checkout -- dvc.lock") from error
    hashes = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", [])}
    cached = {_relative(Path(out.fs_path), repo) for out in repo.index.outs if out.use_cache}
    return {name: md5 for name, md5 in hashes.items() if name in cached}


def _with_children(repo: Repo, oid: str) -> Iterator[str]:
    yield oid
    listing = Path(repo.cache.local.oid_to_path(oid))
    if oid.endswith(".dir") and listing.exists() and _md5(listing) == oid.removesuffix(".dir"):
        yield from (entry["md5"] for entry in json.loads(listing.read_text(encoding="utf-8")))


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _delete_object(path: Path) -> None:
    path.chmod(0o644)  # DVC protects what it keeps
    path.unlink()


def _relative(path: Path, repo: Repo) -> str:
    root = Path(repo.root_dir)
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


if __name__ == "__main__":
    run(main)
