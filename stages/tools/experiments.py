"""Rows of a table as DVC experiments: their commands, and what came out of them."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.core.artefacts import with_details
from stages.settings.errors import UserError
from stages.settings.section import Section


class Measure(Section):
    """One number of an experiment, in [0, 1]: a metrics file of dvc.yaml and a dotted key in it.

    `baseline` is the key of the same number for the clusters of colour and position alone.
    """

    file: str
    key: str
    baseline: str = ""


class Row(Section):
    """One row: what it changes, and what the paper says of it, in per cent by measure.

    `needs` says in words what has to be at hand beside the demo, where something has.
    """

    name: str = Field(min_length=1)
    paper: dict[str, float]
    changes: dict[str, Any]
    needs: str = ""


class Table(Section):
    """A whole table.

    `stage` is the one that its measures come from: what the table does not show is not run.
    """

    title: str
    stage: str = Field(min_length=1)
    measures: dict[str, Measure] = Field(min_length=1)
    notes: list[str]
    rows: list[Row] = Field(min_length=1)


def read_table(path: Path) -> Table:
    """Read one table.

    Raises:
        UserError: it is not there, or says what no table says.
    """
    if not path.exists():
        known = ", ".join(sorted(table.stem for table in path.parent.glob("*.yaml")))
        raise UserError(f"{path}: no such table; there are: {known}")
    try:
        table = Table.model_validate(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
    except (YAMLError, ValidationError) as error:
        raise UserError(f"{path}: is no table of experiments: {' '.join(str(error).split())}") from error
    names = [row.name for row in table.rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: rows have a name each, but {', '.join(sorted(twice))} is there twice")
    if strange := sorted({measure for row in table.rows for measure in row.paper} - set(table.measures)):
        raise UserError(f"{path}: rows give {', '.join(strange)}, which is none of its measures")
    return table


Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One row with one seed."""

    name: str
    row: str
    seed: int
    stage: str
    changes: tuple[tuple[str, str], ...]

    def command(self, *how: str) -> list[str]:
        """What runs it, as words, up to its stage; `how` is `--temp` or `--queue`."""
        settings = [word for key, value in self.changes for word in ("--set-param", f"{key}={value}")]
        return [sys.executable, "-m", "dvc", "exp", "run", *how, "--name", self.name, *settings, self.stage]


def experiments(
    name: str, table: Table, seeds: Sequence[int], more: Mapping[str, str]
) -> Iterator[Experiment]:
    """Every row with every seed.

    The name of an experiment holds a fingerprint of its changes, so that a result is never taken for that
    of other changes.

    Args:
        name: of the table.
        table: its rows, and the stage that they are run up to.
        seeds: of params.yaml.
        more: changes of params.yaml for all rows, below those of a row.
    """
    for row in table.rows:
        for seed in seeds:
            changes = {**more, **{key: _text(value) for key, value in row.changes.items()}, "seed": str(seed)}
            mark = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:6]
            slug = re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")
            experiment = f"table{name}-{slug}-s{seed}-{mark}"
            yield Experiment(experiment, row.name, seed, table.stage, tuple(changes.items()))


def run(command: Sequence[str]) -> None:
    """Run one command of DVC, its output on the screen.

    Raises:
        UserError: it failed; what was done before stays, and the same `make table` goes on from there.
    """
    ended = subprocess.run(command, check=False)
    if ended.returncode:
        raise UserError(
            f"`{' '.join(command[2:])}` ended with {ended.returncode} (see above); experiments that are done "
            "stay, and the same `make table` goes on after them"
        )


def finished(files: Collection[str]) -> dict[str, Metrics]:
    """Metrics of all finished experiments of the current commit, by name; each is {file: content}.

    Args:
        files: of metrics that are wanted; an experiment without any of them has not finished.

    Raises:
        UserError: DVC cannot show the experiments.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise UserError(f"`dvc exp show` ended with {shown.returncode}: {shown.stderr.strip()[-500:]}")
    found: dict[str, Metrics] = {}
    for name, revision in parse(json.loads(shown.stdout)).items():
        contents = {file: content for file in files if (content := _committed(revision, file))}
        if contents:
            found[name] = contents
    return found


def _committed(revision: str, file: str) -> Metrics | None:
    """All figures of a metrics file in a commit of git, of which DVC shows the headline alone."""
    shown = subprocess.run(
        ["git", "show", f"{revision}:./{file}"], capture_output=True, text=True, check=False
    )
    if shown.returncode:
        return None
    return {name: with_details(figures) for name, figures in json.loads(shown.stdout).items()}


def parse(shown: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Revision by name of experiment, of what `dvc exp show --json` prints; without unfinished ones."""
    found: dict[str, str] = {}
    for commit in shown:
        for experiment in commit["experiments"] or []:
            last = (experiment["revs"] or [{}])[0]
            metrics = (last.get("data") or {}).get("metrics")
            state = (experiment.get("executor") or {}).get("state")
            if metrics and state not in ("queued", "running", "failed"):
                found[str(experiment["name"])] = last["rev"]
    return found


def measured(metrics: Metrics, file: str, key: str) -> float | None:
    """The number under a dotted key of a metrics file, None where it is not there."""
    value: Any = metrics.get(file, {})
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


def _text(value: Any) -> str:
    """A value as `--set-param` takes it."""
    return json.dumps(value) if isinstance(value, (bool, list, dict)) else str(value)
