"""A table of the paper as a file: its rows as changes of params.yaml, and the paper's own numbers."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.runtime.errors import UserError
from stages.runtime.schema import Section


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
