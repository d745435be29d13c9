"""The results of a table of experiments, as numbers and as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from stages.settings.params import flat
from stages.settings.schema import Params
from stages.tools.experiments import Experiment, Measure, Metrics, Table, measured

ABSENT = "–"
BASELINE = "k-means on color and position"


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


def describe_run(params: Params, changes: Sequence[str]) -> str:
    """Data set, settings and changes of the rows, as one line; rows may have values of their own.

    Args:
        params: params.yaml.
        changes: `key=value` for all rows; they come before what params.yaml says.
    """
    values = dict(flat(params.model_dump())) | dict(change.split("=", 1) for change in changes)
    data = Path(values["prepare.path"]).name if values["prepare.path"] else values["prepare.reader"]
    method, init = values["pretrain.method"], values["pretrain.init"]
    start = f"pretraining {method}" + (f" from {Path(init).name}" if init else "")
    if method != "none":
        start += f", {values['pretrain.epochs']} epochs"
    changed = f"; changed: {', '.join(changes)}" if changes else ""
    return (
        f"Data: {data} (preset {params.preset}). {values['backbone.arch']} of width "
        f"{values['backbone.width']}, {values['size_px']} px, {values['precision']}, {start}, training "
        f"{values['train.epochs']} epochs{changed}."
    )


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
