"""Training curves: one small panel for each column of a training history."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.settings.errors import UserError

X_COLUMN = "epoch"
COLUMNS = 4
PANEL_INCHES = (2.7, 1.9)
DPI = 110
LINE, TEXT, GRID = "#2f7ebc", "#767a80", "#767a8040"  # readable on light and dark backgrounds


def draw_histories(histories: Mapping[str, pd.DataFrame], folder: Path) -> dict[str, str | None]:
    """Draw <name>.png for each history; map each name to its file, or to None without trained epochs."""
    return {
        name: f"{name}.png" if draw_curves(history, folder / f"{name}.png") else None
        for name, history in histories.items()
    }


def draw_curves(history: pd.DataFrame, path: Path) -> bool:
    """Plot every numeric column against the epoch.

    Returns:
        False if there is nothing to plot: without trained epochs the history has no rows.

    Raises:
        UserError: the history has no column `epoch`.
    """
    if X_COLUMN not in history.columns:
        raise UserError(f"history: has columns {', '.join(history.columns)}, but no column {X_COLUMN!r}")
    values = history.apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all")
    names = [name for name in values.columns if name != X_COLUMN]
    if values.empty or not names:
        return False
    rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(
        figsize=(COLUMNS * PANEL_INCHES[0], rows * PANEL_INCHES[1]), dpi=DPI, layout="constrained"
    )
    for place, name in enumerate(names, start=1):
        _draw(figure.add_subplot(rows, COLUMNS, place), values[X_COLUMN], values[name], str(name))
    figure.savefig(path, transparent=True, metadata={"Software": None})
    return True


def _draw(axes: Axes, epochs: pd.Series, values: pd.Series, name: str) -> None:
    """Draw one panel, titled with the name and the last value."""
    axes.plot(epochs, values, color=LINE, linewidth=1.8, marker="o", markersize=2.5)
    axes.set_title(name.replace("_", " "), loc="left", fontsize=9, color=TEXT, parse_math=False)
    axes.set_title(f"{values.iloc[-1]:.4g}", loc="right", fontsize=9, color=LINE)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(colors=TEXT, labelsize=7.5, length=0)
    axes.grid(color=GRID, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
