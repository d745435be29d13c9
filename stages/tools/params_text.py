"""Edits of params.yaml that leave every other byte as it is, and a memory of what these tools wrote."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core.artefacts import write_text
from stages.core.atomic import atomic_path
from stages.core.hashes import file_sha256
from stages.core.repository import in_repository
from stages.settings.errors import UserError
from stages.settings.params import read

SCALAR = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*"|[^\s#,}]+""")
WRITTEN = Path(".state/params.sha256")  # of the params.yaml that `make preset` or `make pin` wrote last


@contextmanager
def set_texts(path: Path, changes: Mapping[str, str]) -> Iterator[None]:
    """Set texts under dotted keys of params.yaml; settings, comments and edits around them stay.

    The body of the `with` runs when the edit is known to be possible; the file changes after it.

    Raises:
        UserError: the file is invalid, or a value is written in a way that cannot be replaced.
    """
    before = read(path)
    text = path.read_bytes().decode("utf-8")
    was_written = is_as_written(path)
    lines = text.splitlines(keepends=True)
    root = YAML().load(text)
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = root
        for part in sections:
            section = section[part]
        line, column = section.lc.value(name)
        found = SCALAR.match(lines[line], column)
        end = found.end() if found else column
        lines[line] = lines[line][:column] + _quoted(value) + lines[line][end:]
    with atomic_path(path) as temporary:
        temporary.write_bytes("".join(lines).encode("utf-8"))
        if _content(temporary) != _changed(before.model_dump(), changes):
            wanted = "; ".join(f"{key}: {_quoted(value)}" for key, value in changes.items())
            raise UserError(f"{path}: is written in a way that cannot be edited here; set by hand: {wanted}")
        yield
    if was_written:
        remember_written(path)


def _content(path: Path) -> dict[str, Any] | None:
    """All settings; None if the file is invalid."""
    try:
        return read(path).model_dump()
    except UserError:
        return None


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _changed(content: dict[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = content
        for part in sections:
            section = section[part]
        section[name] = value
    return content


def is_active(path: Path) -> bool:
    """Whether the file is the params.yaml of the repository, not another that a tool was told to write."""
    return path.resolve() == in_repository("params.yaml").resolve()


def remember_written(path: Path) -> None:
    """Store that params.yaml is as a tool wrote it, so that its difference to git is no edit of the user."""
    if is_active(path):
        write_text(_memory(), file_sha256(path) + "\n")


def is_as_written(path: Path) -> bool:
    """Whether a tool wrote the file exactly as it is now."""
    memory = _memory()
    if not (memory.exists() and path.exists()):
        return False
    return memory.read_text(encoding="utf-8").strip() == file_sha256(path)


def _memory() -> Path:
    return in_repository(WRITTEN)
