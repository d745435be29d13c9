"""The results of a table of experiments, as numbers and as Markdown."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from stages.settings.params import flat
from stages.settings.schema import Params
from stages.settings.schema_pretrain import DENSE_METHODS, UNTRAINED
from stages.tools.experiments import Experiment
from stages.tools.finished_experiments import Metrics, measured
from stages.tools.table_changes import Change
from stages.tools.table_file import Measure, Row, Table

ABSENT = "–"
BASELINE = "k-means on color and position"
# Settings that decide a pretraining and its images; size_px, which is missing, is for those of validation.
PRETRAINING = ("prepare.", "seed", "precision", "deterministic", "compile", "backbone.", "pretrain.")


def compare(table: Table, experiments: Sequence[Experiment], finished: Mapping[str, Metrics]) -> pd.DataFrame:
    """List the results of each row and measure, as printed; the color-and-position baseline comes last.

    Columns: row, measure, paper, mean, std (sample std; NaN for one seed), num_seeds (finished ones).
    """
    done = [one for one in experiments if one.name in finished]
    lines = []
    for row in table.rows:
        results = [finished[one.name] for one in done if one.row == row.name]
        for name, measure in table.measures.items():
            found = _summary(results, measure, measure.key)
            lines.append((row.name, name, row.paper.get(name), *found))
    one_by_seed = {one.seed: finished[one.name] for one in done}  # the baseline is the same in every row
    for name, measure in table.measures.items():
        if measure.baseline:
            found = _summary(one_by_seed.values(), measure, measure.baseline)
            lines.append((BASELINE, name, None, *found))
    return pd.DataFrame(lines, columns=["row", "measure", "paper", "mean", "std", "num_seeds"])


def _summary(results: Iterable[Metrics], measure: Measure, key: str) -> tuple[float, float, int]:
    values = [value for metrics in results if (value := measured(metrics, measure.file, key)) is not None]
    scaled = measure.scale * pd.Series(values, dtype=float)
    return scaled.mean(), scaled.std(), len(scaled)


def describe_run(params: Params, table: Table, changes: Sequence[Change]) -> str:
    """Data set, settings and changes of the rows, as one line; rows may have values of their own.

    Args:
        params: params.yaml.
        table: its rows without the changes; what all of them set alike comes before all else.
        changes: of `--set`; those for all rows come before what params.yaml says.
    """
    first, *others = (row.changes for row in table.rows)
    alike = {key: value for key, value in first.items() if all(row.get(key) == value for row in others)}
    given = {change.key: change.value for change in changes if change.rows is None}
    values = dict(flat(params.model_dump())) | given | alike
    data = Path(values["prepare.path"]).name if values["prepare.path"] else values["prepare.reader"]
    method, init = values["pretrain.method"], values["pretrain.init"]
    start = f"pretraining {method}" + (f" from {Path(init).name}" if init else "")
    if method not in UNTRAINED:
        start += f", {values['pretrain.epochs']} epochs"
        first = values["pretrain.dense.mocov2_epochs"]  # text, if a change has set it
        if str(first) != "0" and method in DENSE_METHODS:
            start += f" after {first} of mocov2"
    changed = f"; changed: {', '.join(change.text for change in changes)}" if changes else ""
    return (
        f"Data: {data} (preset {params.preset}). {values['backbone.arch']} of width "
        f"{values['backbone.width']}, {values['size_px']} px, {values['precision']}, {start}, training "
        f"{values['train.epochs']} epochs, learning rate {values['train.lr']}, feature stride "
        f"{values['train.feature_stride']}, guidance weight {values['train.image_loss.weight']}, "
        f"select_ratio {values['select_ratio']}{changed}."
    )


def announce(name: str, rows: Mapping[int, Row], experiments: Collection[Experiment]) -> Iterator[str]:
    """What runs, and what its rows need, as lines.

    Args:
        name: name of the table.
        rows: by their number, counted from 1.
        experiments: those that run.
    """
    count = _count_pretrainings(experiments)
    most = f"at most {_many(count, 'pretraining')} (DVC's cache may have some)" if count else "no pretraining"
    yield f"table {name}: {_many(len(experiments), 'experiment')}, {most}"
    run = {one.row for one in experiments}
    for number, row in rows.items():
        if row.needs and row.name in run:
            yield f"row {number}, {row.name}: needs {row.needs}"


def _count_pretrainings(experiments: Iterable[Experiment]) -> int:
    """Number of different pretrainings; experiments that pretrain alike share one in DVC's cache."""
    trained = (
        one.settings
        for one in experiments
        if one.settings["pretrain.method"] not in UNTRAINED and one.settings["pretrain.epochs"] != "0"
    )
    return len(
        {tuple(sorted(pair for pair in one.items() if pair[0].startswith(PRETRAINING))) for one in trained}
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def as_markdown(table: Table, compared: pd.DataFrame, run: str) -> str:
    """Format the comparison as a Markdown table: each measure here and, if given, in the paper.

    Args:
        table: the table.
        compared: result of `compare`.
        run: what all rows share, for the head (`describe_run`).
    """
    columns = [(name, whose) for name in table.measures for whose in _whose(table, name)]
    lines = [f"# {table.title}", "", run, "", _says_base(table), ""]
    lines += ["| | " + " | ".join(" ".join(column) for column in columns) + " | seeds |"]
    lines += ["| --- |" + " ---: |" * len(columns) + " ---: |"]
    for row, found in compared.groupby("row", sort=False):
        by_measure = found.set_index("measure").reindex(list(table.measures))
        cells = [CELLS[whose](by_measure.loc[name]) for name, whose in columns]
        lines.append("| " + " | ".join([str(row), *cells, str(found["num_seeds"].max())]) + " |")
    for row, scores in table.published.items():
        cells = [
            f"{scores[name]:.2f}" if whose == "paper" and name in scores else ABSENT
            for name, whose in columns
        ]
        lines.append("| " + " | ".join([f"{row} (published)", *cells, ABSENT]) + " |")
    needs = [f"{row.name}: needs {row.needs}" for row in table.rows if row.needs]
    return "\n".join([*lines, "", *(f"- {note}" for note in [*table.notes, *needs]), ""])


def _says_base(table: Table) -> str:
    others = "".join(f" {row.name}: {row.base}." for row in table.rows if row.base)
    where = f"{table.base} (presets/bases/{table.base}.yaml)" if table.base else "the settings of params.yaml"
    return f"Base of the rows: {where}.{others}"


def _whose(table: Table, measure: str) -> tuple[str, ...]:
    return ("here", "paper") if any(measure in row.paper for row in table.rows) else ("here",)


def _here(line: pd.Series) -> str:
    spread = "" if pd.isna(line["std"]) else f" ± {line['std']:.1f}"
    return ABSENT if pd.isna(line["mean"]) else f"{line['mean']:.1f}{spread}"


def _paper(line: pd.Series) -> str:
    return ABSENT if pd.isna(line["paper"]) else f"{line['paper']:.2f}"


CELLS = {"here": _here, "paper": _paper}
