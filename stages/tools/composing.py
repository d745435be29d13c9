"""Complete settings from a preset: its differences are laid over those of the demo, comments included."""

import difflib
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from stages.settings.errors import UserError
from stages.settings.yaml_text import loaded, parsed

PRESETS, BASE = Path("presets"), "demo"


def compose(name: str, folder: Path = PRESETS, above: tuple[str, ...] = ()) -> CommentedMap:
    """Merge a preset into demo.yaml, including comments, to a complete params.yaml.

    Args:
        name: of the preset.
        folder: where presets are.
        above: presets that extend this one.

    Raises:
        UserError: the preset does not exist, is not valid YAML, or has a key that is not in demo.yaml.
    """
    path = folder / f"{name}.yaml"
    preset = load_preset(path)
    if name == BASE:
        return preset
    if name in above:
        raise UserError(f"{path}: extends itself ({' -> '.join((*above, name))}); extend {BASE} or folder")
    params = compose(preset.pop("extends", BASE), folder, (*above, name))
    if base := preset.pop("base", None):
        lay_base(params, base, folder)
    _lay_over(params, preset, f"{path}: ")
    return params


def lay_base(params: CommentedMap, name: str, folder: Path = PRESETS) -> None:
    """Overwrite values and comments in `params` with those of a base.

    Raises:
        UserError: the base does not exist, or has a key that is not in `params`.
    """
    path = folder / "bases" / f"{name}.yaml"
    _lay_over(params, load_preset(path), f"{path}: ")


def load_preset(path: Path) -> CommentedMap:
    """Read a preset or a base, with its comments.

    Raises:
        UserError: the file is missing, is not valid YAML, or has no keys and values.
    """
    require_file(path)
    content = parsed(path.read_bytes(), str(path), _yaml())
    if not isinstance(content, CommentedMap):
        raise UserError(f"{path}: must list keys and values, such as size_px: 128")
    return content


def require_file(path: Path) -> None:
    """Check that there is such a file in a folder of YAML files, which users choose by name.

    Raises:
        UserError: there is none; the error lists those that are there.
    """
    if not path.exists():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise UserError(f"{path}: not found; available: {known}")


def _lay_over(params: CommentedMap, changes: CommentedMap, where: str) -> None:
    """Overwrite values and comments in `params` with those of `changes`."""
    for key, value in changes.items():
        if key not in params:
            near = difflib.get_close_matches(key, list(params), n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(params)}"
            raise UserError(f"{where}{key}: unknown key; {meant}")
        is_section = isinstance(params[key], CommentedMap)
        if is_section != isinstance(value, CommentedMap):
            kind = (
                f"is a section: write its keys below it, such as {next(iter(params[key]))}"
                if is_section
                else "has no keys below it"
            )
            raise UserError(f"{where}{key}: {kind}")
        if is_section:
            _lay_over(params[key], value, f"{where}{key}.")
        else:
            params[key] = value
        _take_comment(params, changes, key)


def _take_comment(params: CommentedMap, changes: CommentedMap, key: str) -> None:
    """Copy the comment after a key; keep the blank line at the end of a section in `params`."""
    if key not in changes.ca.items or changes.ca.items[key][2] is None:
        return
    before = params.ca.items.get(key)
    is_last = before is not None and before[2] is not None and before[2].value.endswith("\n\n")
    comment = changes.ca.items[key]
    comment[2].value = comment[2].value.rstrip("\n") + ("\n\n" if is_last else "\n")
    params.ca.items[key] = comment


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 1000  # disables line wrapping
    return yaml


def as_text(params: CommentedMap) -> str:
    """Format params.yaml with its comments."""
    text = StringIO()
    _yaml().dump(params, text)
    return text.getvalue()


def plain(params: CommentedMap) -> Any:
    """Convert to built-in Python types, without comments."""
    return loaded(as_text(params))
