"""The file of a table of experiments, and the bases that its rows stand on."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from stages.settings.errors import UserError
from stages.settings.params import flat
from stages.settings.section import Section
from stages.settings.yaml_text import parsed
from stages.tools.composing import load_preset, plain, require_file


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


def read_base(path: Path) -> dict[str, Any]:
    """Read a base as {dotted key: value}.

    Raises:
        UserError: the file is missing, is not valid YAML, or has no keys and values.
    """
    return dict(flat(plain(load_preset(path))))
