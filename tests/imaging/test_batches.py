"""Batches of stored images: the bytes of the file, in the order asked for, however the system serves them."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.artefacts import read_array
from stages.imaging import batches as module
from stages.imaging.batches import LOOK_AHEAD, ImageSource
from stages.settings.errors import UserError

CPU = torch.device("cpu")
COUNT, SIDE = 23, 5
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", IMAGES)
    return tmp_path / "images.npy"


@pytest.fixture
def source(path: Path) -> ImageSource:
    return ImageSource(read_array(path, memory_map=True), CPU)


def _read(source: ImageSource, indices: Sequence[Sequence[int]]) -> list[np.ndarray]:
    asked = (torch.tensor(rows, dtype=torch.long) for rows in indices)
    return [batch.numpy().copy() for batch in source.read(asked, pinned=False)]


rows_of_batches = st.lists(st.lists(st.integers(0, COUNT - 1), max_size=40), max_size=9)


@given(rows_of_batches)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_the_bytes_are_those_of_numpy_in_any_order(source: ImageSource, indices: list[list[int]]) -> None:
    found = _read(source, indices)
    assert len(found) == len(indices)
    for batch, rows in zip(found, indices, strict=True):
        np.testing.assert_array_equal(batch, IMAGES[np.array(rows, int)])


def test_batches_are_rgb_from_0_to_1(source: ImageSource) -> None:
    (batch,) = source.batches([torch.tensor([4, 2, 4])])
    np.testing.assert_allclose(batch.numpy(), IMAGES[[4, 2, 4]].transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_arrays_in_memory_and_slices_of_a_map_are_read_alike(path: Path) -> None:
    mapped = read_array(path, memory_map=True)
    for array, expected in ((IMAGES, IMAGES), (mapped[7:], IMAGES[7:]), (mapped[::2], IMAGES[::2])):
        (batch,) = _read(ImageSource(array, CPU), [[3, 0, 3]])
        np.testing.assert_array_equal(batch, expected[[3, 0, 3]])


def test_columns_first_files_are_read_alike(path: Path) -> None:
    np.save(path, np.asfortranarray(IMAGES))
    (batch,) = _read(ImageSource(read_array(path, memory_map=True), CPU), [[3, 0, 3]])
    np.testing.assert_array_equal(batch, IMAGES[[3, 0, 3]])


def test_an_index_outside_is_refused(source: ImageSource) -> None:
    with pytest.raises(IndexError):
        _read(source, [[0, COUNT]])


def test_calls_that_read_less_than_asked_go_on(source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, offset: whole(file, [parts[0][:7]], offset))
    (batch,) = _read(source, [[9, 1, 22]])
    np.testing.assert_array_equal(batch, IMAGES[[9, 1, 22]])


@pytest.mark.parametrize("readers", [1, 3, 64])
def test_any_number_of_threads_gives_the_same(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    monkeypatch.setattr(module, "READERS", readers)
    order = [np.random.default_rng(one).permutation(COUNT).tolist() for one in range(20)]
    with ThreadPoolExecutor(4) as users:
        for found in users.map(lambda _: _read(source, order), range(4)):
            np.testing.assert_array_equal(np.concatenate(found), IMAGES[np.concatenate(order)])


def test_the_next_batches_are_read_while_one_is_in_use(source: ImageSource) -> None:
    asked = []

    def indices() -> Iterator[torch.Tensor]:
        for number in range(9):
            asked.append(number)
            yield torch.tensor([number])

    found = source.batches(indices())
    for number in range(9):
        next(found)
        assert len(asked) == min(9, number + 1 + LOOK_AHEAD)


def test_a_file_that_is_cut_short_is_named(source: ImageSource, path: Path) -> None:
    size = IMAGES[0].nbytes
    os.truncate(path, path.stat().st_size - 3 * size + 1)  # one byte of image 20 is left
    found = source.batches([torch.tensor([19]), torch.tensor([20]), torch.tensor([1])])
    np.testing.assert_allclose(next(found)[0].permute(1, 2, 0).numpy(), IMAGES[19] / 255, atol=1e-6)
    with pytest.raises(UserError) as caught:
        next(found)
    assert str(caught.value) == (
        f"{path}: was cut short while it was read: it ends within image 20; delete its folder and run "
        "`dvc repro` to make it again"
    )


def test_a_file_that_is_gone_is_named(source: ImageSource, path: Path) -> None:
    path.unlink()
    with pytest.raises(UserError, match="cannot be read") as caught:
        _read(source, [[0]])
    assert str(caught.value) == (
        f"{path}: cannot be read (No such file or directory); check the disk, and run `dvc repro` to go on "
        "or to make it again"
    )


def test_a_fault_of_the_disk_is_named(
    source: ImageSource, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError) as caught:
        _read(source, [[0, 1, 2]])
    assert str(caught.value).startswith(f"{path}: cannot be read (Input/output error); check the disk")


def _handles(path: Path) -> int:
    """Open files of this process that are `path`."""
    return sum(os.path.realpath(one) == str(path) for one in OPEN_FILES.iterdir())


def test_no_file_stays_open(source: ImageSource, path: Path) -> None:
    before = _handles(path)  # of the map
    _read(source, [[0]])
    assert _handles(path) == before
    left = source.batches([torch.tensor([number]) for number in range(9)])
    next(left)
    assert _handles(path) == before + 1
    left.close()
    assert _handles(path) == before


def _compare(source: ImageSource, rows: list[int]) -> None:
    (batch,) = _read(source, [rows])
    np.testing.assert_array_equal(batch, IMAGES[rows])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_while_this_one_does(source: ImageSource, method: str) -> None:
    found = source.batches([torch.tensor([number]) for number in range(COUNT)])
    batches = [next(found)]
    other = get_context(method).Process(target=_compare, args=(source, [5, 2, 2, 22]))
    other.start()
    batches += found
    other.join(300)  # it imports torch, on a busy machine for minutes
    assert other.exitcode == 0
    expected = IMAGES.transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(torch.cat(batches).numpy(), expected, atol=1e-6)
