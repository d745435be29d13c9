"""Read and write tensors as safetensors files, without pickle.

Separate from `artefacts`, so that stages without torch do not import it.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.core.artefacts import MAKE_AGAIN, unreadable
from stages.core.atomic import atomic_path
from stages.settings.errors import UserError


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors as safetensors; `about` is metadata for the reader (JSON values)."""
    with atomic_path(path) as temporary:
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                temporary,
                {"about": json.dumps(about, sort_keys=True)},
            )
        except SafetensorError as error:  # the errno is only in the error text
            if number := re.search(r"os error (\d+)", str(error)):
                code = int(number[1])
                raise OSError(code, os.strerror(code), str(path)) from error
            raise


def read_tensors(
    path: Path, *needed: str, remedy: str = ""
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`: the tensors, on the CPU, and `about`.

    Args:
        path: the file.
        needed: names of tensors.
        remedy: what to do if it is missing or another file; empty if a stage makes it.

    Raises:
        UserError: the file cannot be read, is truncated, is not of this project, or lacks a `needed` tensor.
    """
    try:
        path.open("rb").close()  # safe_open calls a file absent that it may not read
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        remedies = {"absent": remedy, "damaged": remedy} if remedy else {}
        message = unreadable(path, "a safetensors file of this project", error, **remedies)
        raise UserError(message) from error
    if missing := [name for name in needed if name not in tensors]:
        raise UserError(f"{path}: lacks {', '.join(missing)}; {remedy or MAKE_AGAIN}")
    return tensors, about
