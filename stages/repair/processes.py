"""Processes that work in a repository: DVC's own, its stages, and stages that outlived their DVC."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from stages.repair.finding import Finding

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
