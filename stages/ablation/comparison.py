"""What was measured beside what the paper says: mean and standard deviation over seeds."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from stages.ablation.experiments import Experiment, Metrics, measured
from stages.ablation.table_file import Table

ABSENT = "–"
BASELINE = "k-means on colour and position"


def compare(table: Table, experiments: Sequence[Experiment], finished: Mapping[str, Metrics]) -> pd.DataFrame:
    """One row for each of the table and each measure, in per cent; last the clusters of colour and position.

    Columns: row, measure, paper, mean, std (of the sample; NaN for one seed), num_seeds that are finished.
    """
    done = [one for one in experiments if one.name in finished]
    lines = []
    for row in table.rows:
        results = [finished[one.name] for one in done if one.row == row.name]
        for name, measure in table.measures.items():
            found = _summary(results, measure.file, measure.key)
            lines.append((row.name, name, row.paper.get(name), *found))
    one_by_seed = {one.seed: finished[one.name] for one in done}  # the same numbers in every row
    for name, measure in table.measures.items():
        if measure.baseline:
            found = _summary(one_by_seed.values(), measure.file, measure.baseline)
            lines.append((BASELINE, name, None, *found))
    return pd.DataFrame(lines, columns=["row", "measure", "paper", "mean", "std", "num_seeds"])


def _summary(results: Iterable[Metrics], file: str, key: str) -> tuple[float, float, int]:
    values = [value for metrics in results if (value := measured(metrics, file, key)) is not None]
    percent = 100 * pd.Series(values, dtype=float)
    return percent.mean(), percent.std(), len(percent)


def as_markdown(table: Table, compared: pd.DataFrame) -> str:
    """The comparison as a Markdown table: each measure as found here, beside the paper's where it has any."""
    columns = [(name, whose) for name in table.measures for whose in _whose(table, name)]
    lines = [f"# {table.title}", ""]
    lines += ["| | " + " | ".join(" ".join(column) for column in columns) + " | seeds |"]
    lines += ["| --- |" + " ---: |" * len(columns) + " ---: |"]
    for row, found in compared.groupby("row", sort=False):
        by_measure = found.set_index("measure").reindex(list(table.measures))
        cells = [CELLS[whose](by_measure.loc[name]) for name, whose in columns]
        lines.append("| " + " | ".join([str(row), *cells, str(found["num_seeds"].max())]) + " |")
    needs = [f"{row.name}: needs {row.needs}" for row in table.rows if row.needs]
    return "\n".join([*lines, "", *(f"- {note}" for note in [*table.notes, *needs]), ""])


def _whose(table: Table, measure: str) -> tuple[str, ...]:
    return ("here", "paper") if any(measure in row.paper for row in table.rows) else ("here",)


def _here(line: pd.Series) -> str:
    spread = "" if pd.isna(line["std"]) else f" ± {line['std']:.1f}"
    return ABSENT if pd.isna(line["mean"]) else f"{line['mean']:.1f}{spread}"


def _paper(line: pd.Series) -> str:
    return ABSENT if pd.isna(line["paper"]) else f"{line['paper']:.2f}"


CELLS = {"here": _here, "paper": _paper}
