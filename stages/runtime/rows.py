"""A large array that a stage writes row by row: the rows that are done survive a kill."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from stages.runtime.artefacts import atomic_path, create_array, named_faults
from stages.runtime.state import StageState

NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # other disk, or a file system without


class RowWriter:
    """A .npy array with the state of its stage, filled from the first row to the last.

    Attributes:
        path: where it lies until it is delivered, of its full size from the start.
        array: a memory map of it.
        done: rows that need not be computed again; those of an earlier run, to begin with.
    """

    def __init__(self, state: StageState, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        self.path, self._state, self.done = state.folder / "rows.npy", state, 0
        saved = state.load()
        if saved is None:
            with named_faults(self.path):
                create_array(self.path, dtype, shape)
        else:
            self.done = saved["done"]
        self.array = np.lib.format.open_memmap(self.path, mode="r+")

    def append(self, values: np.ndarray) -> None:
        """Write the next rows."""
        self.array[self.done : self.done + len(values)] = values
        self.advance(len(values))

    def advance(self, rows: int) -> None:
        """The next `rows` rows are written already; from time to time that is kept."""
        self.done += rows
        if self._state.is_due():
            self.array.flush()  # before the number: a power loss must not leave rows that are only said to be
            self._state.save({"done": self.done})

    def deliver(self, path: Path) -> None:
        """Give the array its place; the state keeps its name for it until the stage has finished."""
        self.array.flush()
        with atomic_path(path) as temporary:
            temporary.unlink()
            try:
                os.link(self.path, temporary)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                shutil.copyfile(self.path, temporary)
