"""dvc.yaml as tests read it: every stage with its templates filled in; and the imports of the code."""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.runtime import watch
from tests.datasets import REPOSITORY

# Code that changes no result: reading and checking settings, errors, progress, state; naming the machine.
NEUTRAL = tuple(sorted(f"{name.replace('.', '/')}.py" for name in watch.NEUTRAL))
NEUTRAL_KEYS = ("device", "runtime")
# What is read beside code: taxonomies of label maps, template of the page.
READ_AS_DATA = {
    "prepare": tuple(
        sorted(
            f"stages/dataset/taxonomies/{path.name}"
            for path in (REPOSITORY / "stages/dataset/taxonomies").iterdir()
        )
    ),
    "report": ("stages/reporting/page.html",),
}


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

    @property
    def code_deps(self) -> tuple[str, ...]:
        """The code that it names."""
        return tuple(dep for dep in self.deps if dep.startswith("stages/"))


def read_stages(root: Path = REPOSITORY) -> dict[str, Stage]:
    """All stages of dvc.yaml, in order."""
    content = YAML(typ="safe", pure=True).load((root / "dvc.yaml").read_text(encoding="utf-8"))
    stages = {}
    for name, entry in content["stages"].items():
        if "foreach" not in entry:
            stages[name] = _stage(name, entry)
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
        tuple(entry.get("deps", [])),
        tuple(entry.get("params", [])),
        tuple(paths("outs")),
        tuple(paths("metrics") + paths("plots")),
        entry,
    )


@functools.cache
def imports(path: str, root: Path = REPOSITORY) -> frozenset[str]:
    """Paths under stages/ that a module imports itself, with every package on the way that holds code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name == "stages" or name.startswith("stages."):
                found |= _files(name, root)
    return frozenset(found - {path})


def _files(module: str, root: Path) -> set[str]:
    parts = module.split(".")
    packages = {"/".join([*parts[:end], "__init__.py"]) for end in range(1, len(parts) + 1)}
    module_file = "/".join(parts) + ".py"
    return {file for file in {*packages, module_file} if (root / file).exists() and holds_code(file, root)}


@functools.cache
def holds_code(path: str, root: Path = REPOSITORY) -> bool:
    """Whether there is more than a docstring."""
    body = ast.parse((root / path).read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def closure(script: str, root: Path = REPOSITORY) -> set[str]:
    """The script and all that it imports, and what that imports."""
    reached, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(imports(path, root))
    return reached


def code_of(stage: Stage) -> list[str]:
    """What the stage has to name: the script first, then the rooms by name."""
    named = closure(stage.script) - set(NEUTRAL) - {stage.script}
    return [stage.script, *sorted({*named, *READ_AS_DATA.get(stage.stem, ())})]
