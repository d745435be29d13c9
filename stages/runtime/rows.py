"""An array that a stage writes row by row, alone or with several processes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from stages.core import distributed
from stages.core.atomic import atomic_path
from stages.runtime.links import link
from stages.runtime.state import StageState


class RowWriter:
    """A .npy array in the state folder of a stage, filled row by row; rank 0 writes it.

    Attributes:
        path: file of the preallocated array until `deliver`.
        array: memory map of the file; in rank 0 alone.
        done: number of finished rows, including those of an earlier run.
    """

    def __init__(self, state: StageState, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        saved = state.load()
        self.path, self._state = state.folder / "rows.npy", state
        self.done = 0 if saved is None else saved["done"]
        self._row, self._dtype = shape[1:], dtype
        if distributed.is_leader():
            self.array = state.array(self.path.name, dtype, shape, is_new=saved is None)

    def left(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """The batches of rows that are not done, of all batches in order."""
        return [batch for batch in batches if int(batch[0]) >= self.done]

    def collect(self, parts: Iterator[Tensor], sizes: Sequence[int]) -> None:
        """Write batches that the processes compute in turn.

        Args:
            parts: the batches of this process, those that `distributed.in_turn` gives it.
            sizes: rows of each batch of all processes, in order.
        """
        none = torch.from_numpy(np.empty((0, *self._row), self._dtype))
        for start in range(0, len(sizes), distributed.world_size()):
            due = sizes[start : start + distributed.world_size()]
            has_part = distributed.rank() < len(due)
            part = next(parts).to(none.dtype) if has_part else none
            for values in distributed.to_leader(part, due):
                self.append(values.numpy())

    def append(self, values: np.ndarray) -> None:
        """Write the next rows."""
        self.array[self.done : self.done + len(values)] = values
        self.advance(len(values))

    def advance(self, rows: int) -> None:
        """Mark the next `rows` rows as written; save the state if it is due."""
        self.done += rows
        if self._state.is_due():
            self.array.flush()  # before the count, so that after a power loss no counted row is missing
            self._state.save({"done": self.done})

    def deliver(self, path: Path) -> None:
        """Write the array to its output path; the state folder keeps a hard link until `finish`."""
        self.array.flush()
        with atomic_path(path) as temporary:
            temporary.unlink()
            link(self.path, temporary)
