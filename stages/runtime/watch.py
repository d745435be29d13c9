"""Detects changes of code, params and inputs while a stage runs.

DVC records code, params and inputs at the end of a stage, so it would attribute a result to changed files
that the stage never used.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.core.hashes import file_sha256
from stages.settings.errors import UserError
from stages.settings.params import load

MOST_NAMED = 5  # changes listed in a message
NEUTRAL = ("stages.settings.", "stages.runtime.")  # packages that do not affect results


class Watch:
    """Code, params and inputs of one stage at its start.

    To be made as soon as the params are read, before any input is: it does not see what changes between them.

    Args:
        stage: name of the stage.
        params_path: path of params.yaml.
        keys: top-level keys of params.yaml that the stage reads.
        inputs: files and folders that the stage reads; None stands for one that it was not given.
    """

    def __init__(
        self, stage: str, params_path: Path, keys: Sequence[str], inputs: Iterable[Path | None]
    ) -> None:
        self.stage, self._params_path, self._keys = stage, params_path, tuple(keys)
        self.inputs = tuple(path for path in inputs if path is not None)
        self._sources = {
            name: Path(str(module.__file__)) for name, module in sys.modules.items() if _decides(name, module)
        }
        self.code, self.params = self._read_code(), self._read_params()
        self._marks = _marks(self.inputs)

    def check(self, kept: str = "") -> None:
        """Check for changes; call this before writing outputs.

        Args:
            kept: note on saved work, appended to the error message.

        Raises:
            UserError: code, params or inputs changed while the stage ran.
        """
        changed = [
            *(f"code {name}" for name in differing(self.code, self._read_code())),
            *(f"param {name}" for name in differing(self.params, self._read_params())),
            *differing(self._marks, _marks(self.inputs)),
        ]
        if not changed:
            return
        raise UserError(
            f"{self.stage}: changed while it ran: {summarise(changed)}; its result would belong to neither "
            f"the old nor the new, so nothing is written; run `dvc repro` again{kept}"
        )

    def _read_code(self) -> dict[str, str]:
        return {name: file_sha256(path) for name, path in sorted(self._sources.items()) if path.exists()}

    def _read_params(self) -> dict[str, Any]:
        return load(self._params_path, *self._keys).model_dump()


def _decides(name: str, module: ModuleType) -> bool:
    """Whether a loaded module is project code that affects results; the script itself is `__main__`."""
    spec = getattr(module, "__spec__", None)
    name = spec.name if name == "__main__" and spec else name
    return name.startswith("stages.") and not name.startswith(NEUTRAL) and bool(module.__file__)


def _marks(inputs: Iterable[Path]) -> dict[str, tuple[int, int, int]]:
    """Return size, modification time and inode of every file; dvc.lock does not show recent changes."""
    files = [file for path in inputs for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    stats = {str(file): file.stat() for file in files if file.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, or that one side lacks."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def summarise(names: Sequence[str]) -> str:
    """The first few names, and how many more there are; '' if there are none."""
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
