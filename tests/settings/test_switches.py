"""Tests with tiny settings do not depend on the switches of params.yaml, which is the user's."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from stages.settings.schema import Params
from stages.settings.section import Section


def _is_switch(kind: Any) -> bool:
    """Whether a value is one of a few; of a list each item may be."""
    if kind is bool or get_origin(kind) is Literal:
        return True
    return get_origin(kind) is not list and any(map(_is_switch, get_args(kind)))


def _switches(section: type[Section], before: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _switches(kind, f"{before}{name}.")
        elif _is_switch(kind):
            yield before + name


def test_every_switch_is_at_a_known_place(tiny: dict[str, Any]) -> None:
    switches = set(_switches(Params))
    assert {"compile", "train.image_loss.weight", "refine.backend"} <= switches
    assert sorted(switches - tiny.keys()) == []
