"""The epochs and steps of a long training: sums, history, saved state, and a loss that is no number."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.core import distributed
from stages.runtime.progress import say, track
from stages.runtime.state import StageState
from stages.settings.errors import UserError


class Learner(Protocol):
    """What is trained, as far as a saved state is concerned."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from it."""


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Go on from a saved state, each running mean in the memory order of its parameter.

    Files keep values and not their order in memory, and a fused step reads parameter and means side by side
    as they lie there.
    """
    optimizer.load_state_dict(saved)  # type: ignore[arg-type]
    for parameter, means in optimizer.state.items():
        for name, value in means.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                means[name] = torch.empty_like(parameter.detach(), dtype=value.dtype).copy_(value)


class Loop:
    """Where a training is, and what it has measured so far.

    It begins where the saved state ends. With several processes each one reads and trains on its share of
    every batch, and what is measured is the mean over all.

    Args:
        stage: name of the stage.
        learner: what is trained.
        figures: names of what a step measures.
        state: where to go on from, and where to save to.
        device: of the figures.
        cure: what to do about a loss that is no number.
    """

    def __init__(
        self,
        stage: str,
        learner: Learner,
        figures: Sequence[str],
        *,
        state: StageState,
        device: torch.device,
        cure: str,
    ) -> None:
        self._stage, self._learner, self._figures = stage, learner, tuple(figures)
        self._state, self._cure = state, cure
        self.epoch = self.step = 0
        self._sums = torch.zeros(len(self._figures), device=device)
        self._history: list[dict[str, float]] = []
        if saved := state.load():
            learner.load_state_dict(saved["learner"])
            self.epoch, self.step, self._history = saved["epoch"], saved["step"], saved["history"]
            self._sums = saved["sums"].to(device)
        distributed.barrier()  # nobody saves before all have read

    def run_epoch(
        self,
        batches: Sequence[Int[Tensor, " N"]],
        read: Callable[[list[Int[Tensor, " n"]]], Iterable[Tensor]],
        train_step: Callable[[Int[Tensor, " n"], Tensor], Float[Tensor, " F"]],
    ) -> dict[str, float]:
        """Train on the batches of an epoch that are still to come.

        Args:
            batches: rows of all its batches.
            read: the images of some batches, one after the other.
            train_step: takes rows and images of (this process's share of) one batch, gives the figures.

        Returns:
            The mean of each figure over the epoch.

        Raises:
            UserError: the loss is no longer a number.
        """
        remaining = [distributed.share(rows) for rows in batches[self.step :]]
        what = f"{self._stage} epoch {self.epoch + 1}"
        progress = track(read(remaining), what, total=len(remaining), unit="batch")
        for rows, batch in zip(remaining, progress, strict=True):
            self._sums += distributed.mean(train_step(rows, batch).detach())
            self.step += 1
            if self._state.is_due() and self.step < len(batches):
                self._check_finite()
                self._state.save(self._saved())
        self._check_finite()
        return dict(zip(self._figures, (self._sums / len(batches)).tolist(), strict=True))

    def end_epoch(self, figures: Mapping[str, float], num_epochs: int) -> None:
        """Keep the figures of an epoch, show them, and go on to the next."""
        self.epoch, self.step = self.epoch + 1, 0
        self._sums.zero_()
        self._history.append({"epoch": self.epoch, **figures})
        say(self._stage, epoch=f"{self.epoch}/{num_epochs}", **figures)

    def history(self, *more: str) -> pd.DataFrame:
        """One row for each epoch: its number, the figures, then `more` that were kept beside them."""
        return pd.DataFrame(self._history, columns=["epoch", *self._figures, *more])

    def _check_finite(self) -> None:
        if not torch.isfinite(self._sums).all():
            raise UserError(
                f"{self._stage}: the loss is not a number in epoch {self.epoch + 1}, by step {self.step}; "
                f"{self._cure}"
            )

    def _saved(self) -> dict[str, Any]:
        return {
            "learner": self._learner.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self._sums,
            "history": self._history,
        }
