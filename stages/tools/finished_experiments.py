"""What DVC knows of experiments: which are queued, which are finished, and their metrics."""

import json
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.artefacts import with_details
from stages.settings.errors import UserError
from stages.tools.surroundings import git

Metrics = Mapping[str, Any]
Shown = Sequence[Mapping[str, Any]]  # of each commit, as `dvc exp show --json` has it


def show() -> Shown:
    """Ask DVC for the experiments of the current commit.

    Raises:
        UserError: DVC cannot show them.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise UserError(
            f"`dvc exp show` failed with exit code {shown.returncode}: {shown.stderr.strip()[-500:]}"
        )
    return list(json.loads(shown.stdout))


def finished(shown: Shown, files: Collection[str]) -> dict[str, Metrics]:
    """Read the metrics of all finished experiments of the current commit, as {name: {file: content}}.

    Args:
        shown: what DVC says of them.
        files: metrics files to read; an experiment with none of them counts as unfinished.
    """
    found: dict[str, Metrics] = {}
    for name, revision in revisions(shown).items():
        contents = {file: content for file in files if (content := _committed(revision, file))}
        if contents:
            found[name] = contents
    return found


def waiting(shown: Shown) -> set[str]:
    """Names of the experiments that are queued or running."""
    return {
        str(experiment["name"])
        for commit in shown
        for experiment in commit["experiments"] or []
        if _state(experiment) in ("queued", "running")
    }


def _state(experiment: Mapping[str, Any]) -> str:
    return (experiment.get("executor") or {}).get("state") or ""


def _committed(revision: str, file: str) -> Metrics | None:
    """Read a metrics file in full from a git commit; DVC itself shows only the headline metrics."""
    shown = git(Path(), "show", f"{revision}:./{file}")
    if shown.returncode:
        return None
    return {name: with_details(figures) for name, figures in json.loads(shown.stdout).items()}


def revisions(shown: Shown) -> dict[str, str]:
    """Map each finished experiment to its revision."""
    found: dict[str, str] = {}
    for commit in shown:
        for experiment in commit["experiments"] or []:
            last = (experiment["revs"] or [{}])[0]
            metrics = (last.get("data") or {}).get("metrics")
            if metrics and _state(experiment) not in ("queued", "running", "failed"):
                found[str(experiment["name"])] = last["rev"]
    return found


def measured(metrics: Metrics, file: str, key: str) -> float | None:
    """Return the number at a dotted key of a metrics file, or None if it is missing."""
    value: Any = metrics.get(file, {})
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) else None
