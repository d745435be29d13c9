"""Read and write tensors as safetensors files, without pickle.

Separate from `artefacts`, so that stages without torch do not import it.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.core.artefacts import atomic_path, unreadable
from stages.settings.errors import UserError

FINGERPRINT_DIGITS = 12


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


def read_tensors(path: Path, *needed: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`: the tensors, on the CPU, and `about`.

    Raises:
        UserError: the file cannot be read, is truncated, is not of this project, or lacks a `needed` tensor.
    """
    try:
        path.open("rb").close()  # safe_open calls a file absent that it may not read
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(unreadable(path, "a safetensors file of this project", error)) from error
    if missing := [name for name in needed if name not in tensors]:
        raise UserError(f"{path}: lacks {', '.join(missing)}; delete it and run `dvc repro` to make it again")
    return tensors, about


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, pinned: str, key: str) -> str:
    """The SHA-256 of a file that a setting names; must equal `pinned` unless that is empty.

    Args:
        path: of the file.
        pinned: value of the setting `<key>_sha256`.
        key: dotted key of the setting that names the file.

    Raises:
        UserError: the file is missing, unreadable, or has another hash.
    """
    try:
        found = file_sha256(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); set {key} to a checkpoint, absolute or relative to "
            "the root of the repository"
        ) from error
    if pinned and found != pinned:
        raise UserError(
            f"{key}_sha256: is {pinned}, but {path} has the SHA-256 {found}; the file differs or is "
            f"truncated; get the pinned file, or set {key.rpartition('.')[2]}_sha256 to this hash"
        )
    return found


def fingerprint(centroids: Path) -> str:
    """Short name of the clusters in a file of `cluster`: the start of its SHA-256."""
    return file_sha256(centroids)[:FINGERPRINT_DIGITS]
