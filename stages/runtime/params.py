"""params.yaml, read as DVC reads it, checked whole, handed out in parts."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.runtime.errors import UserError
from stages.runtime.schema import Params

TYPES = {
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "bool_type": "bool",
    "string_type": "text",
    "list_type": "list",
    "model_type": "section",
    "model_attributes_type": "section",
}


def read(path: Path) -> Params:
    """Read and check all of params.yaml.

    YAML 1.2, as DVC reads it: `1e-4` is a number here, where PyYAML makes it text.

    Raises:
        UserError: every fault at once, each with its dotted key.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; write one with `make preset NAME=demo`") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a file of settings") from error
    except (YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, got {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        faults = sorted(set(_fault(detail, raw) for detail in error.errors()))
        raise UserError(f"{path}:", *(f"  {fault}" for fault in faults)) from error


def load(path: Path, *keys: str) -> Any:
    """The checked top-level `keys` of params.yaml and nothing else.

    A stage can read only what it names here, and a test holds these names against dvc.yaml.
    """
    params = read(path)
    return SimpleNamespace(**{key: getattr(params, key) for key in keys})


def _fault(detail: ErrorDetails, raw: dict[str, Any]) -> str:
    location = [str(part) for part in detail["loc"]]
    key, kind, value = ".".join(location), detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(_known_keys(location[:-1]))
        near = difflib.get_close_matches(location[-1], known, n=1)
        return f"{key}: unknown key" + (
            f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
        )
    if kind == "missing":
        return f"{key}: missing; presets/demo.yaml has every key"
    if kind == "literal_error":
        return f"{key}: expected one of {context['expected']}, got {value!r}"
    if kind in TYPES:
        return f"{key}: expected {TYPES[kind]}, got {value!r}"
    if kind == "value_error":
        message = str(context["error"])
        return f"{key}: {message}" if isinstance(value, list) else f"{key}.{message}" if key else message
    return f"{key}: {_rule(detail)}, got {value!r}"


def _rule(detail: ErrorDetails) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    for name, sign in signs.items():
        if name in detail.get("ctx", {}):
            return f"must be {sign} {detail['ctx'][name]}"
    return detail["msg"][0].lower() + detail["msg"][1:]


def _known_keys(section: list[str]) -> Iterator[str]:
    model: Any = Params
    for part in section:
        model = model.model_fields[part].annotation
    yield from model.model_fields
