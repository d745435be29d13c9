"""DVC's lock files after a crash; to be asked about only when no DVC is at work."""

import json
from collections.abc import Iterator
from pathlib import Path

from stages.repair.finding import Finding

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
