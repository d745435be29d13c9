"""Training curves: one small panel for each column of a training history, drawn as SVG by the page."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.settings.errors import UserError

X_COLUMN = "epoch"
WIDTH, HEIGHT = 240, 90  # of a panel, in its own units


@dataclass(frozen=True)
class Curve:
    """One panel.

    Attributes:
        name: what is drawn.
        points: the line in SVG coordinates, "x,y x,y"; a lone epoch is a short level line.
        low, high, last: of the values, formatted.
        first_epoch, last_epoch: range of the axis.
    """

    name: str
    points: str
    low: str
    high: str
    last: str
    first_epoch: str
    last_epoch: str


def curves(history: pd.DataFrame) -> list[Curve]:
    """Make a panel of every numeric column against the epoch; none if no epoch was trained.

    Raises:
        UserError: the history has no column `epoch`.
    """
    if X_COLUMN not in history.columns:
        raise UserError(f"history: has columns {', '.join(history.columns)}, but no column {X_COLUMN!r}")
    values = history.apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all")
    names = [name for name in values.columns if name != X_COLUMN]
    return [_curve(str(name), values[X_COLUMN], values[name]) for name in names if not values.empty]


def _curve(name: str, epochs: pd.Series, values: pd.Series) -> Curve:
    """Gaps in a column are left out of its line."""
    known = values.notna()
    x, y = epochs[known].to_numpy(float), values[known].to_numpy(float)
    low, high = float(y.min()), float(y.max())
    across = WIDTH * (x - epochs.min()) / max(float(epochs.max() - epochs.min()), 1)
    down = HEIGHT * (high - y) / (high - low) if high > low else np.full(len(y), HEIGHT / 2)
    places = [f"{right:.1f},{below:.1f}" for right, below in zip(across, down, strict=True)]
    if len(places) == 1:
        places.append(f"{across[0] + WIDTH / 20:.1f},{down[0]:.1f}")
    return Curve(
        name.replace("_", " "),
        " ".join(places),
        *(f"{value:.4g}" for value in (low, high, float(y[-1]))),
        *(f"{epoch:g}" for epoch in (epochs.min(), epochs.max())),
    )
