"""Saved state of a long stage, which lets an interrupted run resume.

DVC deletes the outputs of a stage before it runs, so the state is stored elsewhere, under a hash of
everything that determines the result: command, code, params and inputs. A run never uses a state with a
different hash.
"""

import copy
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike
from torch import Tensor

from stages.core import distributed
from stages.core.artefacts import create_array
from stages.core.atomic import named_faults
from stages.core.hashes import file_sha256
from stages.core.repository import in_repository
from stages.core.tensors import read_tensors, write_tensors
from stages.runtime.locks import try_lock
from stages.runtime.progress import tell
from stages.runtime.tree import flatten, unflatten
from stages.runtime.watch import Watch, differing, summarise
from stages.settings.errors import UserError
from stages.settings.yaml_text import loaded


class Saved(Protocol):
    """Object whose state can be saved and loaded."""

    def state_dict(self) -> dict[str, Any]:
        """Return all state needed to resume: nested dicts and lists of tensors and JSON values."""

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore the saved state."""


class StageState:
    """The saved state of one stage, locked against a second process; of several, rank 0 saves and all load.

    Args:
        watch: code, params and inputs that determine the result.
        interval_seconds: time between saves.
        data: text that identifies anything else that determines the result.
        pins: params as `section.key` that only verify the result and are left out of the hash.

    Attributes:
        folder: folder of the state; a stage may store more files in it.

    Raises:
        UserError: another process runs the same stage, the folder is not writable, or processes of this run
            differ in code, params or inputs.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        interval_seconds: float,
        data: str = "",
        pins: Sequence[str] = (),
    ) -> None:
        self._watch = watch
        self._interval, self._saved_at = interval_seconds, time.monotonic()
        root = in_repository(".state")
        self.folder = root / watch.stage / common_fingerprint(watch, data, pins)[:16]
        if not distributed.is_leader():
            return
        with named_faults(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        if not try_lock(self._lock, watch.stage):
            raise UserError(
                f"{watch.stage}: another process is running this stage (lock: {self.folder}/lock); "
                "wait for it to end or stop it, then run `dvc repro` again"
            )

    def load(self) -> Any | None:
        """Return the last saved state, or None; with several processes, the state on the disk of rank 0."""
        path, found = self.folder / "state.safetensors", None
        if distributed.is_leader() and path.exists():
            found = read_tensors(path)
            tell(f"{self._watch.stage}: resuming from the state in {self.folder}")
        found = distributed.object_from_leader(found)
        return None if found is None else unflatten(found[1]["tree"], found[0])

    def save_step(self, trainer: Saved, history: Saved, epoch: int, step: int) -> None:
        """Save the state for `restore`; `epoch` and `step` are the next ones to run."""
        self.save(
            {
                "trainer": trainer.state_dict(),
                "history": history.state_dict(),
                "epoch": epoch,
                "step": step,
            }
        )

    def array(self, name: str, dtype: DTypeLike, shape: tuple[int, ...], *, is_new: bool) -> np.memmap:
        """Open a .npy array in the state folder for writing: new (zeros) or from an earlier run."""
        path = self.folder / name
        if is_new:
            with named_faults(path):
                return create_array(path, dtype, shape)
        return np.lib.format.open_memmap(path, mode="r+")

    def is_due(self) -> bool:
        """Whether this process saves and the save interval has passed."""
        return distributed.is_leader() and time.monotonic() - self._saved_at >= self._interval

    def save(self, state: Any) -> None:
        """Save nested dicts and lists of tensors and JSON values, atomically and without pickle."""
        tensors: dict[str, Tensor] = {}
        tree = flatten(state, "state", tensors)
        write_tensors(self.folder / "state.safetensors", tensors, {"tree": tree})
        self._saved_at = time.monotonic()

    def check(self) -> None:
        """Check for changes before writing outputs, because DVC records code and params after the stage.

        Raises:
            UserError: code, params or inputs changed while the stage ran.
        """
        self._watch.check(f" (the state of this run stays in {self.folder})")

    def finish(self) -> None:
        """Delete the state after the outputs are written."""
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            # A network drive keeps a file that is deleted while it is open, under a hidden name, until it is
            # closed. So the folder stays while lock and arrays of this run are open; empty, it is harmless.
            if error.errno != errno.ENOTEMPTY:
                raise
        self._lock.close()


def restore(saved: Any | None, trainer: Saved, history: Saved) -> tuple[int, int]:
    """Restore trainer and history from what `load` has read.

    Returns:
        Next epoch and next step; (0, 0) if no state was saved.
    """
    if saved is None:
        return 0, 0
    trainer.load_state_dict(saved["trainer"])
    history.load_state_dict(saved["history"])
    return saved["epoch"], saved["step"]


def common_fingerprint(watch: Watch, data: str = "", pins: Sequence[str] = ()) -> str:
    """Hash everything that determines the result; it has to be the same in all processes.

    They compare the contents of the inputs if a dvc.lock differs or is missing, as on hosts without DVC.

    Args:
        watch: code, params and inputs.
        data: text that identifies anything else.
        pins: params that are left out.

    Raises:
        UserError: in all processes, if one differs from rank 0.
    """
    known = _hashes_in_lock() if watch.inputs else {}
    decided = _decided_by(watch, data, pins, known)
    own = _hash(decided)
    if len(set(distributed.objects(own))) == 1:
        return own
    by_contents = _decided_by(watch, data, pins, {}) if known else decided  # large inputs are read once
    parts = {name: _hash(part) for name, part in by_contents.items()}
    (first_host, first), *others = distributed.objects((socket.gethostname(), parts))
    for rank, (host, other) in enumerate(others, start=1):
        if named := summarise(differing(first, other)):
            raise UserError(
                f"{watch.stage}: process {rank} on {host} and process 0 on {first_host} differ in {named}; "
                "give all hosts the same code, settings and inputs"
            )
    return own


def _decided_by(watch: Watch, data: str, pins: Sequence[str], known: Mapping[str, str]) -> dict[str, Any]:
    """What determines the result, by the names under which messages speak of it.

    Args:
        watch: code, params and inputs.
        data: text that identifies anything else.
        pins: params that are left out.
        known: hashes of inputs that need not be read, by path.
    """
    params = copy.deepcopy(watch.params)
    for section, _, key in (pin.partition(".") for pin in pins):
        del params[section][key]
    return {
        "the command line": sys.argv[1:],
        "other data": data,
        **{f"code {name}": digest for name, digest in watch.code.items()},
        **{f"param {name}": value for name, value in params.items()},
        **{str(path): known.get(str(path)) or _hash_input(path) for path in watch.inputs},
    }


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hashes_in_lock() -> dict[str, str]:
    """Hashes of dvc.lock by path, which are up to date for all inputs in a DVC run; else empty."""
    lock = Path("dvc.lock")
    if "DVC_STAGE" not in os.environ or not lock.exists():
        return {}
    stages = loaded(lock.read_bytes()).get("stages", {})
    return {out["path"]: str(out["md5"]) for stage in stages.values() for out in stage.get("outs", [])}


def _hash_input(path: Path) -> str:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return " ".join(f"{file.relative_to(path)}:{file_sha256(file)}" for file in files)
    return file_sha256(path)
