"""What `--set` of `make table` changes: settings of all rows, or of some."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from stages.runtime.progress import warn
from stages.settings.errors import UserError, raise_faults
from stages.settings.params import validated
from stages.settings.schema import Params
from stages.tools.experiments import Experiment
from stages.tools.overrides import value_of
from stages.tools.table_file import Table


class Change(NamedTuple):
    """One `--set`: `KEY=VALUE` for all rows, or `ROWS:KEY=VALUE` for some of them, counted from 1."""

    text: str  # as given
    rows: Collection[int] | None  # None: all
    key: str
    value: str

    def is_for(self, number: int) -> bool:
        """Whether it is for the row with this number."""
        return self.rows is None or number in self.rows


def parse_change(text: str, table: Table) -> Change:
    """Read one `--set`.

    Raises:
        UserError: it has another form, names rows that do not exist, or sets the seed.
    """
    name, sign, value = text.partition("=")
    rows, colon, key = name.rpartition(":")
    if not sign:
        raise UserError(f"--set: must be KEY=VALUE or ROWS:KEY=VALUE, got {text!r}")
    if key == "seed":
        raise UserError("--set seed: has no effect, because each row runs with each of --seeds")
    return Change(text, row_numbers(f"rows of --set {key}", rows, table) if colon else None, key, value)


def with_changes(table: Table, changes: Sequence[Change]) -> Table:
    """The table with the changes in its rows.

    What a row sets itself stays. A change for some rows goes before one for all rows.
    """
    general = {change.key: change.value for change in changes if change.rows is None}
    table_base = general.pop("base", table.base)
    rows = []
    for number, row in enumerate(table.rows, start=1):
        special = {one.key: one.value for one in changes if one.rows is not None and one.is_for(number)}
        base = special.pop("base", "")
        update = {"base": row.base or base, "changes": {**general, **special, **row.changes}}
        rows.append(row.model_copy(update=update))
    return table.model_copy(update={"base": table_base, "rows": rows})


def say_what_rows_keep(changes: Sequence[Change], table: Table, chosen: Collection[int]) -> None:
    """Warn which of the chosen rows set themselves what a change is to set for them.

    Args:
        changes: of `--set`.
        table: as its file has it, without the changes.
        chosen: numbers of the rows that run.

    Raises:
        UserError: all rows that a change is for do so, so it has no effect.
    """
    for change in changes:
        meant = [table.rows[number - 1] for number in chosen if change.is_for(number)]
        own = [row.name for row in meant if (row.base if change.key == "base" else change.key in row.changes)]
        name = change.text.partition("=")[0]
        if own and len(own) == len(meant):
            raise UserError(
                f"--set {name}: has no effect because every row that it is for sets this key itself; select "
                "other rows with --rows"
            )
        if own:
            kept = ", ".join(map(repr, own))
            warn("make table", f"--set {name}: not applied to {kept}, which set this key themselves")


def check_settings(params: Params, experiments: Iterable[Experiment]) -> None:
    """Refuse keys and values that params.yaml cannot have: the stages would, once earlier rows have run.

    Args:
        params: settings before the changes.
        experiments: those that are to run.

    Raises:
        UserError: there are such; the error lists all of them.
    """
    faults = list[str]()
    for experiment in experiments:
        raw = params.model_dump()
        try:
            for key, text in experiment.changes:
                _put(raw, key, value_of(key, text))
            validated(raw)
        except UserError as error:
            faults += error.faults
    raise_faults(dict.fromkeys(faults))


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    section, dot, rest = key.partition(".")
    if dot and isinstance(raw.get(section), dict):
        _put(raw[section], rest, value)
    else:
        raw[key] = value


def row_numbers(flag: str, text: str, table: Table) -> list[int]:
    """Read numbers of rows, counted from 1, such as `2,6`.

    Raises:
        UserError: they are no numbers, or the table has no such rows.
    """
    asked = numbers(flag, text)
    if not set(asked) <= set(range(1, len(table.rows) + 1)):
        raise UserError(f"{flag}: must be between 1 and {len(table.rows)}, got {text}")
    return asked


def numbers(flag: str, text: str) -> list[int]:
    """Read comma-separated integers, each once.

    Raises:
        UserError: they are none.
    """
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise UserError(f"{flag}: must be comma-separated integers, got {text!r}") from error
