"""Who works in a repository: DVC, its stages, stages whose DVC is dead; and whether others could."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

PATIENCE_SECONDS = 10.0
ASKING = "stages.tools.doctor"
# File systems of disks that only this machine uses; all others may be of a network.
OWN_DISKS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs", "overlay", "tmpfs"}


def working(root: Path) -> list[psutil.Process]:
    """List running DVC, stages and commands in the repository and its copies, without orphans."""
    return [process for process in _inside(root, orphaned=False) if _is_dvc(process) or _is_stage(process)]


def orphaned(root: Path) -> Iterator[psutil.Process]:
    """Yield the stages whose DVC process is dead: their outputs go unrecorded and they lock their state."""
    return _inside(root, orphaned=True)


def is_on_shared_disk(path: Path) -> bool:
    """Whether other machines may use the disk of a folder, whose processes are not seen here."""
    path = path.resolve()
    disks = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
    nearest = next((disks[folder] for folder in (path, *path.parents) if folder in disks), "")
    return nearest not in OWN_DISKS


def describe(process: psutil.Process) -> str:
    """Return the command line without the path of the interpreter."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return " ".join([Path(words[0]).name, *words[1:4]]) if words else process.name()
    return "already exited"


def _inside(root: Path, *, orphaned: bool) -> Iterator[psutil.Process]:
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
        return module.startswith("stages.") and module != ASKING  # commands write beside the outputs as well
    return False


def _is_orphan(process: psutil.Process) -> bool:
    environment = process.environ()
    if "DVC_STAGE" not in environment or not _is_stage(process):
        return False
    if "SLURM_PROCID" in environment:  # srun passes the environment on: its DVC may run on another host
        return False
    return not any(_is_dvc(parent) for parent in process.parents())


def end(process: psutil.Process) -> None:
    """End a process, by force if it does not heed."""
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait()
