"""YAML that users write: what it means, and what is said of text that is none."""

import pytest
from ruamel.yaml import YAML

from stages.settings.errors import UserError
from stages.settings.yaml_text import loaded, parsed


def test_numbers_are_those_of_yaml_1_2() -> None:
    assert loaded("a: 1e-4\nb: off") == {"a": 1e-4, "b": "off"}


def test_bytes_are_utf_8_with_any_line_ends() -> None:
    assert parsed("name: Gr\u00fcn\r\nlist: [1, 2]\r\n".encode(), "names.yaml") == {
        "name": "Gr\u00fcn",
        "list": [1, 2],
    }


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\t", "[" * 5000, b"a: \xff", "!!int x", "a: \x00"])
def test_damaged_text_is_named(text: str | bytes) -> None:
    with pytest.raises(UserError, match=r"^own\.yaml: invalid YAML: \S"):
        parsed(text, "own.yaml")


def test_the_given_parser_keeps_comments() -> None:
    content = parsed("a: 1  # why", "own.yaml", YAML())
    assert "why" in str(content.ca.items["a"])
