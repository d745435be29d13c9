"""Reads params.yaml like DVC, validates the whole file, and returns the requested keys."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stages.settings.errors import UserError
from stages.settings.schema import Params
from stages.settings.yaml_text import parsed

TYPES = {
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "bool_type": "bool",
    "string_type": "string",
    "list_type": "list",
    "model_type": "section",
    "model_attributes_type": "section",
}


def read(path: Path) -> Params:
    """Read and validate all of params.yaml.

    Raises:
        UserError: the file is invalid; the error lists every fault with its dotted key.
    """
    try:
        raw = _parsed(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; create it with `make preset NAME=demo`") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); pass a settings file") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, got {type(raw).__name__}")
    try:
        return validated(raw)
    except UserError as error:
        raise UserError(f"{path}:", *(f"  {fault}" for fault in error.faults)) from error


def validated(raw: dict[str, Any]) -> Params:
    """Validate settings, as sections of keys and values.

    Raises:
        UserError: they are invalid; the error lists every fault with its dotted key.
    """
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(*sorted(set(_fault(detail) for detail in error.errors()))) from error


@lru_cache(maxsize=1)  # a stage reads the file several times, and parsing takes a tenth of a second
def _parsed(text: bytes, where: str) -> Any:
    return parsed(text, where)


def load(path: Path, *keys: str) -> Params:
    """Read the given top-level `keys` of params.yaml.

    A stage can access only the keys that it lists here; a test compares these lists with dvc.yaml.

    Raises:
        UserError: as `read`.
    """
    params = read(path)
    # Not validated again: the rules between sections need sections that are not asked for.
    return Params.model_construct(**{key: getattr(params, key) for key in keys})


def flat(section: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted key."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _fault(detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    key, kind, value = ".".join(location), detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_key(key, location[-1], list(_known_keys(location[:-1])))
    if kind == "missing":
        return f"{key}: missing; presets/demo.yaml has every key"
    if kind == "literal_error":
        return f"{key}: expected one of {context['expected']}, got {value!r}"
    if kind in TYPES:
        return f"{key}: expected {TYPES[kind]}, got {value!r}"
    if kind == "value_error":
        message = str(context["error"])
        return f"{key}.{message}" if key else message
    return f"{key}: {_rule(detail)}, got {value!r}"


def unknown_key(key: str, last: str, known: Sequence[str]) -> str:
    """What to say of a key that does not exist: the one that is nearest, or all that do exist.

    Args:
        key: with those of the sections above it, such as train.epoch.
        last: its own part, such as epoch.
        known: what stands in its place.
    """
    near = difflib.get_close_matches(last, known, n=1)
    return f"{key}: unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")


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
