"""Rows of a table as DVC experiments: their commands and their results."""

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

from stages.core.artefacts import with_details
from stages.settings.errors import UserError
from stages.settings.params import flat
from stages.settings.section import Section
from stages.settings.yaml_text import parsed
from stages.tools.composing import load_preset, plain, require_file
from stages.tools.overrides import override, text_of


class Measure(Section):
    """One score of an experiment: a metrics file of dvc.yaml and a dotted key in it.

    `scale` is the factor for printing: 100 for percent of a score in [0, 1]. `baseline` is the key of the
    same score for the color-and-position baseline.
    """

    file: str
    key: str
    baseline: str = ""
    scale: float = 100


class Row(Section):
    """One row: its changes of params.yaml, and the paper's result of each measure in percent.

    `base` is the base of this row, if it is not the table's. `needs` describes any prerequisites beyond the
    demo, such as a data set or a checkpoint.
    """

    name: str = Field(min_length=1)
    paper: dict[str, float]
    changes: dict[str, Any]
    base: str = ""
    needs: str = ""


class Table(Section):
    """A whole table.

    `stage` is the last stage to run: the one that computes the measures. `base` names the file in
    presets/bases/ whose values all rows share; without one, rows take the values of params.yaml. `published`
    lists further results that the paper quotes, in percent, which are printed but not run.
    """

    title: str
    base: str = ""
    stage: str = Field(min_length=1)
    measures: dict[str, Measure] = Field(min_length=1)
    published: dict[str, dict[str, float]] = Field(default_factory=dict)
    notes: list[str]
    rows: list[Row] = Field(min_length=1)


def read_table(path: Path) -> Table:
    """Read one table.

    Raises:
        UserError: the file is missing or is not a valid table.
    """
    require_file(path)
    try:
        table = Table.model_validate(parsed(path.read_bytes(), str(path)))
    except ValidationError as error:
        raise UserError(
            f"{path}: not a valid table of experiments: {' '.join(str(error).split())}"
        ) from error
    names = [row.name for row in table.rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"{path}: row names must be unique, but {', '.join(sorted(twice))} occurs more than once"
        )
    if strange := sorted({measure for row in table.rows for measure in row.paper} - set(table.measures)):
        raise UserError(
            f"{path}: rows use {', '.join(strange)}, which the table does not list under measures"
        )
    return table


Metrics = Mapping[str, Any]
NO_RESULT = ("device", "runtime.")  # settings that change no result, as no stage depends on them


@dataclass(frozen=True)
class Experiment:
    """One row with one seed.

    `settings` are all settings that decide its result, params.yaml with the changes, as {dotted key: text}.
    """

    name: str
    row: str
    seed: int
    stage: str
    changes: tuple[tuple[str, str], ...]
    settings: Mapping[str, str]

    def command(self, *how: str) -> list[str]:
        """Return the `dvc exp run` command up to `stage`, as a list; `how` is `--temp` or `--queue`."""
        settings = [word for key, value in self.changes for word in ("--set-param", override(key, value))]
        return [sys.executable, "-m", "dvc", "exp", "run", *how, "--name", self.name, *settings, self.stage]


def read_base(path: Path) -> dict[str, Any]:
    """Read a base as {dotted key: value}.

    Raises:
        UserError: the file is missing, is not valid YAML, or has no keys and values.
    """
    return dict(flat(plain(load_preset(path))))


def experiments(
    name: str,
    table: Table,
    seeds: Sequence[int],
    bases: Path,
    settings: Mapping[str, Any],
    code: str = "",
) -> Iterator[Experiment]:
    """Yield an experiment for every row and seed.

    The name of each experiment includes a hash of all settings that decide its result, and of code that is
    not committed, so that results of different changes, or of files that were edited between them, are never
    confused.

    Args:
        name: name of the table.
        table: rows and last stage; changes of a row replace values of its base, which replace `settings`.
        seeds: values of `seed` in params.yaml.
        bases: folder of the bases.
        settings: params.yaml, as sections.
        code: hash of what is not committed (`uncommitted_code`).
    """
    unchanged = {key: text_of(value) for key, value in flat(settings)}
    chosen = dict.fromkeys(row.base or table.base for row in table.rows)
    values = {base: read_base(bases / f"{base}.yaml") if base else {} for base in chosen}
    for row in table.rows:
        shared = values[row.base or table.base]
        for seed in seeds:
            changes = {key: text_of(value) for key, value in {**shared, **row.changes, "seed": seed}.items()}
            decisive = {
                key: text for key, text in (unchanged | changes).items() if not key.startswith(NO_RESULT)
            }
            told = json.dumps(decisive, sort_keys=True) + code
            mark = hashlib.sha256(told.encode()).hexdigest()[:6]
            slug = re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")
            experiment = f"table{name}-{slug}-s{seed}-{mark}"
            yield Experiment(experiment, row.name, seed, table.stage, tuple(changes.items()), decisive)


def succeeds(command: Sequence[str]) -> bool:
    """Run a DVC command and show its output; whether it ended with success."""
    return subprocess.run(command, check=False).returncode == 0


def finished(files: Collection[str]) -> dict[str, Metrics]:
    """Read the metrics of all finished experiments of the current commit, as {name: {file: content}}.

    Args:
        files: metrics files to read; an experiment with none of them counts as unfinished.

    Raises:
        UserError: DVC cannot show the experiments.
    """
    found: dict[str, Metrics] = {}
    for name, revision in parse(_shown()).items():
        contents = {file: content for file in files if (content := _committed(revision, file))}
        if contents:
            found[name] = contents
    return found


def waiting() -> set[str]:
    """Names of the experiments that are queued or running.

    Raises:
        UserError: DVC cannot show the experiments.
    """
    return {
        str(experiment["name"])
        for commit in _shown()
        for experiment in commit["experiments"] or []
        if _state(experiment) in ("queued", "running")
    }


def _shown() -> list[Mapping[str, Any]]:
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise UserError(
            f"`dvc exp show` failed with exit code {shown.returncode}: {shown.stderr.strip()[-500:]}"
        )
    return list(json.loads(shown.stdout))


def _state(experiment: Mapping[str, Any]) -> str:
    return (experiment.get("executor") or {}).get("state") or ""


def _committed(revision: str, file: str) -> Metrics | None:
    """Read a metrics file in full from a git commit; DVC itself shows only the headline metrics."""
    shown = subprocess.run(
        ["git", "show", f"{revision}:./{file}"], capture_output=True, text=True, check=False
    )
    if shown.returncode:
        return None
    return {name: with_details(figures) for name, figures in json.loads(shown.stdout).items()}


def parse(shown: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Map each finished experiment in the output of `dvc exp show --json` to its revision."""
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
