"""Checkpoints of other projects as tensors by name; nothing in such a file is ever executed."""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.runtime.errors import UserError

# Where training programs keep the network's tensors; a teacher is what DINO is evaluated with.
CONTAINERS = ("state_dict", "model", "teacher", "student", "backbone", "network")
MOST_CHARACTERS = 200  # of an error of the reader that are shown


def check_sha256(path: Path, pinned: str) -> str:
    """The hash of a file, which has to be the `pinned` one where there is one.

    Raises:
        UserError: the file is not there, cannot be read, or is another one.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); pretrain.init names a checkpoint, absolute or "
            "relative to the root of this repository"
        ) from error
    if pinned and found != pinned:
        raise UserError(
            f"pretrain.init_sha256: is {pinned}, but {path} hashes to {found}: it is another file, or was "
            "cut short; get the right one, or pin this one"
        )
    return found


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of the network in a .safetensors file, or in any that PyTorch has written.

    Raises:
        UserError: the file is no checkpoint, is truncated, holds code beside tensors, or no tensors at all.
    """
    tensors = _network(_load(path))
    if not tensors:
        raise UserError(
            f"{path}: holds no tensors by name, so it is no checkpoint of a network; its state_dict is needed"
        )
    return tensors


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training files keep their command line as a Namespace, which holds values and does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a reader raises on bytes that it was not made for is up to the bytes
        reason = " ".join(str(error).split())[:MOST_CHARACTERS]
        raise UserError(
            f"{path}: is no checkpoint that can be read without running code of its own "
            f"({type(error).__name__}: {reason}); get the file again, or save its state_dict alone"
        ) from error


def _network(content: Any) -> dict[str, Tensor]:
    """The tensors inside the containers that programs wrap them in."""
    while isinstance(content, Mapping):
        inner = [content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)]
        if not inner:
            return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        content = inner[0]
    return {}
