"""What was measured beside what the paper says: mean and standard deviation over seeds."""

from collections.abc import Mapping, Sequence

import pandas as pd

from stages.ablation.experiments import Experiment, Metrics, measured
from stages.ablation.table_file import Table

ABSENT = "–"


def compare(table: Table, experiments: Sequence[Experiment], finished: Mapping[str, Metrics]) -> pd.DataFrame:
    """One row for each of the table and each measure, in per cent.

    Columns: row, measure, paper, mean, std (of the sample; NaN for one seed), num_seeds that are finished.
    """
    lines = []
    for row in table.rows:
        done = [finished[one.name] for one in experiments if one.row == row.name and one.name in finished]
        for name, measure in table.measures.items():
            values = [value for metrics in done if (value := measured(metrics, measure)) is not None]
            percent = 100 * pd.Series(values, dtype=float)
            lines.append((row.name, name, row.paper.get(name), percent.mean(), percent.std(), len(percent)))
    return pd.DataFrame(lines, columns=["row", "measure", "paper", "mean", "std", "num_seeds"])


def as_markdown(table: Table, compared: pd.DataFrame) -> str:
    """The comparison as a Markdown table: for each measure what was found here, and the paper's number."""
    measures = list(table.measures)
    lines = [f"# {table.title}", ""]
    lines += ["| | " + " | ".join(f"{name} here | {name} paper" for name in measures) + " | seeds |"]
    lines += ["| --- |" + " ---: | ---: |" * len(measures) + " ---: |"]
    for row in table.rows:
        cells = [row.name]
        found = compared[compared["row"] == row.name].set_index("measure")
        for name in measures:
            line = found.loc[name]
            spread = "" if pd.isna(line["std"]) else f" ± {line['std']:.1f}"
            cells += [
                ABSENT if pd.isna(line["mean"]) else f"{line['mean']:.1f}{spread}",
                _paper(line["paper"]),
            ]
        lines.append("| " + " | ".join([*cells, str(found["num_seeds"].max())]) + " |")
    needs = [f"{row.name}: needs {row.needs}" for row in table.rows if row.needs]
    return "\n".join([*lines, "", *(f"- {note}" for note in [*table.notes, *needs]), ""])


def _paper(value: float | None) -> str:
    return ABSENT if value is None or pd.isna(value) else f"{value:.2f}"
