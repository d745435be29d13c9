"""The state of a long stage between two runs of it: a kill costs a minute, not a night.

DVC deletes a stage's outputs before it runs the stage, so the state lives outside them, under a
fingerprint of all that decides the result: command, code, params and inputs. State of anything else
is never used.
"""

import copy
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike
from ruamel.yaml import YAML
from torch import Tensor

from stages.core import distributed
from stages.core.artefacts import atomic_path, create_array, named_faults
from stages.core.tensors import read_tensors, write_tensors
from stages.runtime.watch import Watch, hash_file
from stages.settings.errors import UserError

NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # other disk, or a file system without


class Saved(Protocol):
    """What can be saved and loaded."""

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on: nested dicts and lists of tensors and JSON values."""

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from it."""


class StageState:
    """The saved state of one stage, locked against a second process.

    Args:
        watch: what decides its result.
        interval_seconds: between two saved states.
        is_leader: of several processes on the same work one keeps the state; the others only read it.
        data: what decides the result and is neither code nor param nor input, as text.
        pins: params that decide no result, as `section.key`: they are held against it.

    Attributes:
        folder: the state lies here; a stage may keep more beside it.

    Raises:
        UserError: another process is at work on the same, or nothing can be written there.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        interval_seconds: float,
        is_leader: bool = True,
        data: str = "",
        pins: Sequence[str] = (),
    ) -> None:
        self._watch = watch
        self._interval, self._saved_at = interval_seconds, time.monotonic()
        self._is_leader = is_leader
        root = Path(os.environ.get("DVC_ROOT", ".")) / ".state"
        self.folder = root / watch.stage / _fingerprint(watch, data, pins)[:16]
        if not is_leader:
            return
        with named_faults(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{watch.stage}: another process is at work on it (its lock is {self.folder}/lock); "
                "wait for it to end, or end it, and run `dvc repro` again"
            ) from error

    def load(self) -> Any | None:
        """What `save` was given last, or None."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return None
        tensors, about = read_tensors(path)
        if self._is_leader:
            print(f"{self._watch.stage}: going on from the state saved in {self.folder}", flush=True)
        return _unflatten(about["tree"], tensors)

    def resume(self, trainer: Saved, history: Saved) -> tuple[int, int]:
        """Load both behind the last step that a killed run saved.

        Returns:
            The epoch and the step to go on with; (0, 0) where nothing was saved.
        """
        saved = self.load()
        if saved is not None:
            trainer.load_state_dict(saved["trainer"])
            history.load_state_dict(saved["history"])
        distributed.barrier()  # nobody saves before all have read
        return (0, 0) if saved is None else (saved["epoch"], saved["step"])

    def save_step(self, trainer: Saved, history: Saved, epoch: int, step: int) -> None:
        """Keep what `resume` loads; `step` is the one to go on with."""
        self.save(
            {
                "trainer": trainer.state_dict(),
                "history": history.state_dict(),
                "epoch": epoch,
                "step": step,
            }
        )

    def array(self, name: str, dtype: DTypeLike, shape: tuple[int, ...], *, is_new: bool) -> np.memmap:
        """A .npy array beside the state, of zeros or as an earlier run left it, to be filled on disk."""
        path = self.folder / name
        if is_new:
            with named_faults(path):
                create_array(path, dtype, shape)
        return np.lib.format.open_memmap(path, mode="r+")

    def is_due(self) -> bool:
        """Whether it is for this process to save, and the last time is long enough ago."""
        return self._is_leader and time.monotonic() - self._saved_at >= self._interval

    def save(self, state: Any) -> None:
        """Keep nested dicts and lists of tensors and JSON values; atomic, no pickle."""
        tensors: dict[str, Tensor] = {}
        tree = _flatten(state, "state", tensors)
        write_tensors(self.folder / "state.safetensors", tensors, {"tree": tree})
        self._saved_at = time.monotonic()

    def check(self) -> None:
        """To be called before outputs are written: DVC records code and params as they are after a stage.

        Raises:
            UserError: something that decides the result changed while the stage ran.
        """
        self._watch.check(f" (the state of this run stays in {self.folder})")

    def finish(self) -> None:
        """To be called when the outputs are written: the state has done its work."""
        shutil.rmtree(self.folder)
        self._lock.close()


def _fingerprint(watch: Watch, data: str, pins: Sequence[str]) -> str:
    """Of all that decides the result."""
    params = copy.deepcopy(watch.params)
    for section, _, key in (pin.partition(".") for pin in pins):
        del params[section][key]
    decided_by = {
        "argv": sys.argv[1:],
        "code": watch.code,
        "params": params,
        "inputs": {str(path): _hash_input(path) for path in watch.inputs},
        "data": data,
    }
    return hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()


def _hash_input(path: Path) -> str:
    """DVC's own hash where it has one (under DVC, dvc.lock is up to date for all inputs), else ours."""
    lock = Path("dvc.lock")
    if "DVC_STAGE" in os.environ and lock.exists():
        stages = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8")).get("stages", {})
        hashes = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
        if str(path) in hashes:
            return str(hashes[str(path)])
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return " ".join(f"{file.relative_to(path)}:{hash_file(file)}" for file in files)
    return hash_file(path)


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.clone()  # two names of one storage cannot be saved
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _flatten(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_flatten(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]}
    return {"value": value}


def _unflatten(tree: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in content}
    if kind == "list":
        return [_unflatten(item, tensors) for item in content]
    return content


class RowWriter:
    """A .npy array with the state of its stage, filled from the first row to the last.

    Attributes:
        path: where it lies until it is delivered, of its full size from the start.
        array: a memory map of it.
        done: rows that need not be computed again; those of an earlier run, to begin with.
    """

    def __init__(self, state: StageState, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        saved = state.load()
        self.path, self._state = state.folder / "rows.npy", state
        self.done = 0 if saved is None else saved["done"]
        self.array = state.array(self.path.name, dtype, shape, is_new=saved is None)

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
            link(self.path, temporary)


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(source, target)
