"""Rows of a table as DVC experiments: their names and their commands."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.settings.params import flat
from stages.tools.overrides import override, text_of
from stages.tools.table_file import Table, read_base

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
