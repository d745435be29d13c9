"""dvc and git as a user starts them, in a repository of a test."""

import os
import subprocess
import sys
from pathlib import Path

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
