"""Write docs/parameters.md: every key of params.yaml with its range, its values, and its meaning."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.artefacts import write_text
from stages.runtime.script import run
from stages.settings.schema import Params
from stages.tools.composing import compose, plain

HEAD = """\
# Every setting of params.yaml

`make preset NAME=...` writes params.yaml. Edit it, or change a setting for one run:
`dvc exp run --temp -S train.epochs=10`. Every stage refuses a file with an unknown key or a value out of
range, and says what may be there. "ours" marks what the paper leaves open. Values are those of the presets
`demo` and `folder`. This page is made from `presets/` and `stages/settings/` by `make parameters`.
"""
KEY = re.compile(r"( *)([a-z_0-9]+):(?: .*?)?(?: +# (.*)|#? *)$")
MORE = re.compile(r" *# ?(.*)$")
TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.parameters", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("docs/parameters.md"), help="output (default: docs/parameters.md)"
    )
    args = parser.parse_args(argv)
    write_text(args.out, page())


def page(presets: Path = Path("presets")) -> str:
    """The whole page, as Markdown."""
    meanings = read_comments((presets / "demo.yaml").read_text(encoding="utf-8"))
    values = {name: plain(compose(name, presets)) for name in ("demo", "folder")}
    schema = Params.model_json_schema()
    lines = [HEAD]
    top = [key for key, value in values["demo"].items() if not isinstance(value, dict)]
    lines += _table("Top level", "", top, schema, values, meanings, schema)
    for key, value in values["demo"].items():
        if isinstance(value, dict):
            part = schema["properties"][key]
            lines += _section(key, part, {name: one[key] for name, one in values.items()}, meanings, schema)
    return "\n".join(lines) + "\n"


def read_comments(text: str) -> dict[str, str]:
    """Map each dotted key of a params file to its comment; comment lines below a key continue it."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        if matched := KEY.match(line):
            indent, key, comment = len(matched[1]), matched[2], matched[3] or ""
            path = [*(one for one in path if one[0] < indent), (indent, key)]
            found[".".join(name for _, name in path)] = comment
        elif path and (more := MORE.match(line)):
            found[".".join(name for _, name in path)] += " " + more[1]
    return {key: " ".join(comment.split()) for key, comment in found.items()}


def _section(
    name: str,
    part: Mapping[str, Any],
    values: Mapping[str, Mapping[str, Any]],
    meanings: Mapping[str, str],
    schema: Mapping[str, Any],
) -> Iterator[str]:
    """Yield the tables of a section and of the sections in it."""
    own = [key for key, value in values["demo"].items() if not isinstance(value, dict)]
    if own:
        yield from _table(f"`{name}`", f"{name}.", own, _resolved(part, schema), values, meanings, schema)
    for key in values["demo"]:
        if key not in own:
            inner = {preset: one[key] for preset, one in values.items()}
            yield from _section(
                f"{name}.{key}", _resolved(part, schema)["properties"][key], inner, meanings, schema
            )


def _table(
    title: str,
    prefix: str,
    keys: Sequence[str],
    part: Mapping[str, Any],
    values: Mapping[str, Mapping[str, Any]],
    meanings: Mapping[str, str],
    schema: Mapping[str, Any],
) -> Iterator[str]:
    yield f"## {title}\n"
    if meanings.get(prefix.removesuffix(".")):
        yield f"{_cell(meanings[prefix.removesuffix('.')])}\n"
    yield "| key | demo | folder | may be | meaning |\n| --- | --- | --- | --- | --- |"
    for key in keys:
        allowed = describe_range(_resolved(part["properties"][key], schema), schema)
        shown = [f"`{_text(one[key])}`" for one in values.values()]
        yield f"| `{key}` | {' | '.join(shown)} | {_cell(allowed)} | {_cell(meanings[prefix + key])} |"
    yield ""


def _resolved(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a JSON schema, with its reference followed."""
    return schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def describe_range(part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema."""
    if "enum" in part:
        return ", ".join(_text(value) for value in part["enum"])
    if "const" in part:
        return _text(part["const"])
    if "anyOf" in part:
        return " or ".join(describe_range(_resolved(one, schema), schema) for one in part["anyOf"])
    if part["type"] == "array":
        inside = describe_range(_resolved(part["items"], schema), schema)
        entries = part.get("entries", "low, high")
        return f"[{entries}], each {inside}" if part.get("maxItems") == 2 else f"list of: {inside}"
    limits = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {part[name]:g}" for name, sign in limits.items() if name in part]
    return f"{TYPES[part['type']]} {' and '.join(bounds)}".strip()


def _text(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return "''" if value == "" else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    run(main)
