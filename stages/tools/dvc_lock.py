"""dvc.lock: with which settings each stage ran last, which files it read, and which it wrote."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.core.artefacts import unreadable
from stages.settings.errors import UserError
from stages.settings.yaml_text import FAULTS, loaded

LOCK = "dvc.lock"


def read_lock(path: Path) -> dict[str, Any]:
    """The stages that have run, by name.

    Raises:
        UserError: the file cannot be read.
    """
    return dict(read_yaml(path, "a lock of DVC").get("stages", {}))


def read_yaml(path: Path, expected: str) -> dict[str, Any]:
    """A mapping, as it is in a file.

    Args:
        path: the file.
        expected: what it should be, for messages.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        return dict(loaded(path.read_bytes()) or {})
    except (OSError, *FAULTS) as error:
        raise UserError(unreadable(path, expected, error, damaged="restore it, or move it away")) from error


def outdated(stages: Mapping[str, Any], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield stages, with a path, that have read another version of a file than a stage has written last."""
    made = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    for name in names:
        for dep in stages.get(name, {}).get("deps", []):
            if made.get(dep["path"], dep["md5"]) != dep["md5"]:
                yield name, dep["path"]
