"""Nested dicts and lists of tensors and JSON values, as a tree of JSON values and a flat dict of tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A tree of JSON values in which names stand for tensors; adds these to `tensors`."""
    if isinstance(value, Tensor):
        # A copy, as safetensors rejects shared storage; not on a GPU, which may have no room for it.
        tensors[name] = value.detach().to("cpu", copy=True)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, flatten(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [flatten(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]}
    return {"value": value}


def unflatten(tree: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Undo `flatten`."""
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(item, tensors) for key, item in content}
    if kind == "list":
        return [unflatten(item, tensors) for item in content]
    return content
