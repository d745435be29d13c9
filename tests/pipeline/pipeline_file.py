"""dvc.yaml as tests read it: every stage with its templates filled in; and the imports of the code."""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.runtime import watch
from tests.datasets import REPOSITORY

NEUTRAL_ROOMS = tuple(room.replace(".", "/") for room in watch.NEUTRAL)
NEUTRAL_KEYS = ("device", "runtime")
READERS = tuple(sorted(path.name for path in (REPOSITORY / "stages/readers").iterdir() if path.is_dir()))
READER = "${prepare.reader}"  # in a dependency of `prepare`


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml, `evaluate@raw` for one of a foreach group."""

    name: str
    cmd: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]  # cached
    uncached: tuple[str, ...]  # metrics and plots
    entry: dict[str, Any]

    @property
    def stem(self) -> str:
        """Name of its script."""
        return self.name.split("@")[0]

    @property
    def script(self) -> str:
        """Path of its script."""
        return f"stages/{self.stem}.py"

    @property
    def data_deps(self) -> tuple[str, ...]:
        """What it reads and is no code."""
        return tuple(dep for dep in self.deps if not dep.startswith("stages/"))

    def code_deps(self, reader: str = "demo") -> tuple[str, ...]:
        """The files and rooms of code that it names; with the reader that is in use."""
        return tuple(dep.replace(READER, reader) for dep in self.deps if dep.startswith("stages/"))

    def covered(self, reader: str = "demo") -> set[str]:
        """Every file of code that its dependencies cover."""
        return {file for dep in self.code_deps(reader) for file in files_below(dep)}

    def needed(self, reader: str = "demo") -> set[str]:
        """The script and all the code that it imports, without the rooms that decide no result.

        What these rooms alone import is left out too: a saved state is read by the run that wrote it.
        """
        scripts = [self.script, *([f"stages/readers/{reader}/{reader}.py"] if self.stem == "prepare" else [])]
        return set().union(*(closure(path, without=NEUTRAL_ROOMS) for path in scripts))


def files_below(path: str, root: Path = REPOSITORY) -> list[str]:
    """The files of a room, as DVC counts them, or the file itself."""
    found = [root / path] if (root / path).is_file() else sorted((root / path).rglob("*"))
    files = (file.relative_to(root).as_posix() for file in found if file.is_file())
    return [file for file in files if "__pycache__" not in file]


@functools.cache
def read_stages(root: Path = REPOSITORY) -> dict[str, Stage]:
    """All stages of dvc.yaml, in order."""
    content = YAML(typ="safe", pure=True).load((root / "dvc.yaml").read_text(encoding="utf-8"))
    stages = {}
    for name, entry in content["stages"].items():
        if "foreach" not in entry:
            stages[name] = _stage(name, entry)
            continue
        if isinstance(entry["foreach"], str):  # a list of params.yaml, which is empty for the demo
            continue
        for key, item in entry["foreach"].items():
            values = {"key": key, **{f"item.{part}": value for part, value in item.items()}}
            stages[f"{name}@{key}"] = _stage(f"{name}@{key}", _filled(entry["do"], values))
    return stages


def _filled(value: Any, values: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {_filled(key, values): _filled(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    if isinstance(value, str):
        for name, text in values.items():
            value = value.replace(f"${{{name}}}", text)
    return value


def _stage(name: str, entry: dict[str, Any]) -> Stage:
    def paths(kind: str) -> list[str]:
        return [next(iter(out)) if isinstance(out, dict) else out for out in entry.get(kind, [])]

    return Stage(
        name,
        " ".join(entry["cmd"].split()),
        tuple(str(dep) for dep in entry.get("deps", [])),
        tuple(entry.get("params", [])),
        tuple(paths("outs")),
        tuple(paths("metrics") + paths("plots")),
        entry,
    )


@functools.cache
def imports(path: str) -> frozenset[str]:
    """Paths under stages/ that a module imports itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        files = {f"{name.replace('.', '/')}.py" for name in names if name.startswith("stages.")}
        found |= {file for file in files if (REPOSITORY / file).exists()}
    return frozenset(found - {path})


def needed_by_neutral_rooms() -> set[str]:
    """What stages/settings and stages/runtime import of other rooms."""
    files = {path for room in NEUTRAL_ROOMS for path in files_below(room.rstrip("/"))}
    return set().union(*map(closure, files)) - files


def closure(script: str, without: tuple[str, ...] = ()) -> set[str]:
    """The script and all that it imports, and what that imports; rooms of `without` are not entered."""
    reached: set[str] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in reached and not path.startswith(without or ("/",)):
            reached.add(path)
            waiting.extend(imports(path))
    return reached
