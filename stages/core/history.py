"""Training history: sums over the current epoch, and one row for each completed epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from stages.core import distributed
from stages.settings.errors import UserError


class History:
    """Accumulates the figures of a training run, averaged over processes.

    Args:
        figures: names of the figures of a step.
        device: device of the figures.
        measured_in: for figures that some steps do not have, and give as 0, the figure that is the share of
            those that do. Their mean is over these steps alone, and NaN if there are none.
    """

    def __init__(
        self, figures: Sequence[str], device: torch.device, measured_in: Mapping[str, str] | None = None
    ) -> None:
        self._figures, self._measured_in = tuple(figures), measured_in or {}
        self._sums = torch.zeros(len(self._figures), device=device)
        self._rows: list[dict[str, float]] = []

    def add(self, measured: Float[Tensor, " F"]) -> None:
        """Add the figures of one step."""
        self._sums += distributed.mean(measured.detach())

    def check_finite(self, stage: str, step: int, remedy: str) -> None:
        """Stop the training if it has diverged.

        Raises:
            UserError: a figure of this epoch, such as the loss, is NaN or infinite.
        """
        is_finite = torch.isfinite(self._sums).tolist()
        if not all(is_finite):
            names = ", ".join(name for name, one in zip(self._figures, is_finite, strict=True) if not one)
            epoch = len(self._rows) + 1
            raise UserError(f"{stage}: not finite in epoch {epoch}, at step {step}: {names}; {remedy}")

    def end_epoch(self, more: Mapping[str, float], num_steps: int) -> dict[str, float]:
        """End the epoch: append a row with the mean of each figure over `num_steps` steps, then `more`."""
        means = dict(zip(self._figures, (self._sums / num_steps).tolist(), strict=True))
        for name, share in self._measured_in.items():
            means[name] = means[name] / means[share] if means[share] else math.nan
        row = {"epoch": len(self._rows) + 1, **means, **more}
        self._rows.append(row)
        self._sums.zero_()
        return row

    def table(self, more: Sequence[str], before: int = 0) -> pd.DataFrame:
        """One row per epoch: its number, the step figures, and the epoch figures `more`.

        Args:
            more: names of the epoch figures.
            before: number of first epochs to leave out; the next one has number 1.
        """
        rows = pd.DataFrame(self._rows[before:], columns=["epoch", *self._figures, *more])
        return rows.assign(epoch=rows["epoch"] - before)

    def state_dict(self) -> dict[str, Any]:
        """The sums and rows."""
        return {"sums": self._sums, "rows": self._rows}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore the sums and rows."""
        self._sums, self._rows = saved["sums"].to(self._sums.device), saved["rows"]
