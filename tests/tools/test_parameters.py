"""docs/parameters.md: it is what the tool writes, and says something of every key."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.tools.parameters import describe_range, main, read_comments
from tests.datasets import REPOSITORY

COMMITTED = REPOSITORY / "docs/parameters.md"


def test_the_committed_page_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    main(["--out", str(tmp_path / "parameters.md")])
    assert (tmp_path / "parameters.md").read_text() == COMMITTED.read_text(), "run `make parameters`"


def _leaves(section: dict[str, Any]) -> int:
    return sum(_leaves(value) if isinstance(value, dict) else 1 for value in section.values())


def test_every_key_has_a_row_with_a_meaning() -> None:
    rows = [line.split(" | ") for line in COMMITTED.read_text().splitlines() if line.startswith("| `")]
    keys = _leaves(YAML(typ="safe").load(REPOSITORY / "presets/demo.yaml"))
    assert len(rows) == keys
    silent = [row[0] for row in rows if not row[-1].strip(" |")]
    assert not silent, f"keys of presets/demo.yaml without a comment: {silent}"


def test_comments_are_read_with_the_lines_that_continue_them() -> None:
    text = "a: 1  # first\n      # second\nb:   # section\n  c: 'x # y'\n  d: [1, 2] # last\n"
    assert read_comments(text)["a"] == "first second"
    assert read_comments(text)["b"] == "section"
    assert read_comments(text)["b.d"] == "last"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "whole number > 0"),
        ({"type": "number", "minimum": 0, "maximum": 0.5}, "number >= 0 and <= 0.5"),
        ({"enum": [1, 2]}, "1, 2"),
        ({"type": "boolean"}, "true, false"),
        ({"type": "array", "maxItems": 2, "items": {"type": "number"}}, "[low, high], each number"),
        (
            {"type": "array", "maxItems": 2, "items": {"type": "number"}, "entries": "first, second"},
            "[first, second], each number",
        ),
        ({"type": "array", "items": {"enum": ["a"]}}, "list of: a"),
    ],
)
def test_ranges_are_told_in_words(part: dict[str, Any], words: str) -> None:
    assert describe_range(part, {}) == words
