"""YAML 1.2, which DVC reads too: `1e-4` is a number here, but a string in PyYAML."""

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.settings.errors import UserError

# What ruamel.yaml raises at damaged text: its own errors, and those of characters, values and deep nesting.
FAULTS = (YAMLError, ValueError, TypeError, AttributeError, RecursionError)


def loaded(text: str | bytes) -> Any:
    """The content as built-in Python types, without comments.

    Raises:
        YAMLError, or another of `FAULTS`: the text is not YAML.
    """
    return _content(text, YAML(typ="safe", pure=True))


def parsed(text: str | bytes, where: str, yaml: YAML | None = None) -> Any:
    """The content of a text that a user has written.

    Args:
        text: YAML; bytes are UTF-8.
        where: what has it, for the message: a file or an argument.
        yaml: the parser; by default that of `loaded`.

    Raises:
        UserError: the text is not YAML.
    """
    try:
        return _content(text, yaml) if yaml else loaded(text)
    except FAULTS as error:
        raise UserError(f"{where}: invalid YAML: {' '.join(str(error).split())}") from error


def _content(text: str | bytes, yaml: YAML) -> Any:
    return yaml.load(text.decode() if isinstance(text, bytes) else text)
