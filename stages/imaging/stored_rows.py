"""Reading of single rows of an array that may be larger than memory."""

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from stages.settings.errors import UserError

ReadRow = Callable[[int, np.ndarray], None]  # index of the row, and where its bytes go


@contextmanager
def open_rows(array: np.ndarray) -> Iterator[ReadRow]:
    """Yield a function that copies one row of an array; several threads may call it at once.

    Rows of a memory map are read from its file, each by one call of the system. A map reads by page faults,
    one after the other, and each reads ahead as much as the disk is set to, up to several times the row. And
    where its file is cut short, a map kills the process. Rows of other arrays, and of slices of a map, are
    copied from memory.

    Args:
        array: [N, ...].

    Raises:
        UserError: the file cannot be read, or has become too short; the latter from the function.
    """
    if not (isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.flags.c_contiguous):
        yield lambda row, target: np.copyto(target, array[row])
        return
    path, row_bytes = str(array.filename), array.strides[0]
    starts = range(array.offset, array.offset + array.nbytes, row_bytes)
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - the next block closes it
    except OSError as error:
        raise _unreadable(path, error) from error

    def read_row(row: int, target: np.ndarray) -> None:
        left, offset = memoryview(target).cast("B"), starts[row]
        while left:
            try:
                count = os.preadv(file.fileno(), [left], offset)  # may return early
            except OSError as error:
                raise _unreadable(path, error) from error
            if count == 0:
                raise UserError(
                    f"{path}: was cut short while it was read: it ends within image {row}; delete its "
                    "folder and run `dvc repro` to make it again"
                )
            left, offset = left[count:], offset + count

    with file:
        yield read_row


def _unreadable(path: str, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be read ({error.strerror}); check the disk, and run `dvc repro` to go on or to make "
        "it again"
    )
