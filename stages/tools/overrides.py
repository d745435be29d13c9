"""Settings as `dvc exp run --set-param` takes them: YAML, in quotes where its grammar needs them."""

import json
import re
from typing import Any

from stages.settings.yaml_text import parsed

PLAIN = re.compile(r"[A-Za-z0-9_./:+-]*")  # what the grammar of Hydra, which DVC uses, takes as it is
BEFORE_QUOTE = re.compile(r"(\\+)(?='|$)")  # backslashes that would change the meaning of a quote


def text_of(value: Any) -> str:
    """Format a value of params.yaml."""
    return json.dumps(value) if isinstance(value, (bool, list, dict)) else str(value)


def value_of(key: str, text: str) -> Any:
    """Read what `text_of` writes, or a user types.

    Raises:
        UserError: it is not YAML.
    """
    return parsed(text, f"--set {key}") if text else ""


def override(key: str, text: str) -> str:
    """`KEY=VALUE` for `--set-param`; a text such as a file name may hold blanks and commas."""
    value = value_of(key, text)
    if isinstance(value, str) and not (value == text and PLAIN.fullmatch(text)):
        text = "'" + BEFORE_QUOTE.sub(r"\1\1", value).replace("'", r"\'") + "'"
    return f"{key}={text}"
