"""The state of a long stage between two runs of it: a kill costs a minute, not a night.

DVC deletes a stage's outputs before it runs the stage, so the state lives outside them, under a
fingerprint of all that decides the result: command, code, params and inputs. State of anything else
is never used.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel
from ruamel.yaml import YAML
from torch import Tensor

from stages.runtime.artefacts import named_faults
from stages.runtime.errors import UserError
from stages.runtime.tensors import read_tensors, write_tensors

HASH_CHUNK = 1 << 24
NEUTRAL = {
    f"stages.runtime.{name}"
    for name in (
        "cores",
        "environment",
        "errors",
        "fit",
        "launch",
        "params",
        "pool",
        "progress",
        "schema",
        "state",
    )
}


class StageState:
    """The saved state of one stage, locked against a second process.

    Args:
        stage: its name.
        read_params: reads the keys of params.yaml that it uses; called again at the end.
        inputs: the files and folders that it reads.
        interval_seconds: between two saved states.
        is_leader: of several processes on the same work one keeps the state; the others only read it.

    Attributes:
        folder: the state lies here; a stage may keep more beside it.

    Raises:
        UserError: another process is at work on the same, or nothing can be written there.
    """

    def __init__(
        self,
        stage: str,
        read_params: Callable[[], Mapping[str, Any]],
        inputs: Iterable[Path],
        *,
        interval_seconds: float,
        is_leader: bool = True,
    ) -> None:
        self._stage, self._read_params, self._inputs = stage, read_params, list(inputs)
        self._fingerprint, self._marks = self._current_fingerprint(), _marks(self._inputs)
        self._interval, self._saved_at = interval_seconds, time.monotonic()
        self._is_leader = is_leader
        root = Path(os.environ.get("DVC_ROOT", ".")) / ".state"
        self.folder = root / stage / self._fingerprint[:16]
        if not is_leader:
            return
        with named_faults(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{stage}: another process is at work on it (its lock is {self.folder}/lock); "
                "wait for it to end, or end it, and run `dvc repro` again"
            ) from error

    def load(self) -> Any | None:
        """What `save` was given last, or None."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return None
        tensors, about = read_tensors(path)
        if self._is_leader:
            print(f"{self._stage}: going on from the state saved in {self.folder}", flush=True)
        return _unflatten(about["tree"], tensors)

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
        if _marks(self._inputs) != self._marks or self._current_fingerprint() != self._fingerprint:
            raise UserError(
                f"{self._stage}: its code, params or inputs changed while it ran, so the result belongs to "
                f"neither; run `dvc repro` again (the state of this run stays in {self.folder})"
            )

    def finish(self) -> None:
        """To be called when the outputs are written: the state has done its work."""
        shutil.rmtree(self.folder)
        self._lock.close()

    def _current_fingerprint(self) -> str:
        sources = {
            name: _hash_file(Path(str(module.__file__)))
            for name, module in sorted(sys.modules.items())
            if _decides(name, module)
        }
        decided_by = {
            "argv": sys.argv[1:],
            "code": sources,
            "params": {
                name: value.model_dump() if isinstance(value, BaseModel) else value
                for name, value in self._read_params().items()
            },
            "inputs": {str(path): _hash_input(path) for path in self._inputs},
        }
        return hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()


def _decides(name: str, module: ModuleType) -> bool:
    """Whether a loaded module is code of ours that decides the result; the script itself is `__main__`."""
    spec = getattr(module, "__spec__", None)
    name = spec.name if name == "__main__" and spec else name
    return name.startswith("stages.") and name not in NEUTRAL and bool(module.__file__)


def _marks(inputs: Iterable[Path]) -> list[tuple[str, int, int, int]]:
    """Size, time and inode of every input file: dvc.lock does not tell that a file was changed meanwhile."""
    files = [file for path in inputs for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]


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
        return " ".join(f"{file.relative_to(path)}:{_hash_file(file)}" for file in files)
    return _hash_file(path)


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
