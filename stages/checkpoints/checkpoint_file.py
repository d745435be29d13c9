"""Reads checkpoints of other projects as named tensors, without executing code from the file."""

import argparse
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.backbone.resnet import BLOCKS
from stages.backbone.vit import DEPTH, NUM_HEADS
from stages.settings.errors import UserError

# Keys under which training programs store the network; DINO is evaluated with the teacher.
CONTAINERS = ("state_dict", "model", "teacher", "student", "backbone", "network")
MOST_CHARACTERS = 200  # maximum length of a quoted reader error


def check_sha256(path: Path, pinned: str) -> str:
    """The SHA-256 of a file; must equal `pinned` unless that is empty.

    Raises:
        UserError: the file is missing, unreadable, or has another hash.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); set pretrain.init to a checkpoint, absolute or "
            "relative to the root of the repository"
        ) from error
    if pinned and found != pinned:
        raise UserError(
            f"pretrain.init_sha256: is {pinned}, but {path} has the SHA-256 {found}; the file differs or is "
            "truncated; get the pinned file, or set init_sha256 to this hash"
        )
    return found


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of the network in a .safetensors file or a PyTorch file.

    Raises:
        UserError: the file is not a checkpoint, is truncated, contains code, or has no tensors.
    """
    tensors = _network(_load(path))
    if not tensors:
        raise UserError(
            f"{path}: contains no named tensors, so it is not a network checkpoint; save the state_dict"
        )
    return tensors


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training files may store their command line as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # invalid bytes can raise any type of error
        reason = " ".join(str(error).split())[:MOST_CHARACTERS]
        raise UserError(
            f"{path}: cannot be loaded as a checkpoint without executing code from it "
            f"({type(error).__name__}: {reason}); download it again, or save only its state_dict"
        ) from error


def _network(content: Any) -> dict[str, Tensor]:
    """Unwrap the containers of training programs and return the tensors."""
    while isinstance(content, Mapping):
        inner = [content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)]
        if not inner:
            return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        content = inner[0]
    return {}


PUBLISHED_WIDTH = 64
CONVOLUTIONS = {1: 2, 4: 3}  # number per residual block, by block expansion
# Prefixes of momentum (EMA) networks, used only if the file has no other network.
MOMENTUM = ("encoder_k", "momentum")


class Recognised(NamedTuple):
    """A trunk among the tensors of a file."""

    prefix: str  # prefix of its tensor names
    about: dict[str, Any]  # settings of `backbone` inferred from names and shapes


def recognise(tensors: Mapping[str, Tensor], arch: str, width: int) -> Recognised | None:
    """Find the trunk in a file, or None; prefers the network trained by gradients over momentum copies.

    Args:
        tensors: tensors of the file, by name.
        arch: expected architecture.
        width: expected width; the tensor shapes of a ViT do not determine its number of heads, so the
            expected architecture and width are accepted if they fit.
    """
    anchors = {"layer4.0.conv1.weight": "resnet", "patch_embed.proj.weight": "vit"}
    found = [
        (name.removesuffix(anchor), family)
        for name in tensors
        for anchor, family in anchors.items()
        if name == anchor or name.endswith(f".{anchor}")
    ]
    if not found:
        return None
    prefix, family = min(found, key=lambda place: any(word in place[0] for word in MOMENTUM))
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return Recognised(prefix, _resnet(own) if family == "resnet" else _vit(own, arch, width))


def _resnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    depths: tuple[int, ...] = tuple(_count(tensors, rf"layer{level}\.(\d+)\.") for level in range(1, 5))
    convolutions = _count(tensors, r"layer4\.0\.conv(\d+)\.") - 1  # numbered from 1
    known: dict[tuple[tuple[int, ...], int], str] = {
        (depths, CONVOLUTIONS[block.expansion]): arch for arch, (block, depths) in BLOCKS.items()
    }
    blocks = "+".join(map(str, depths))
    about: dict[str, Any] = {
        "arch": known.get(
            (depths, convolutions), f"a ResNet of {blocks} blocks of {convolutions} convolutions"
        )
    }
    return about | {"width": tensors["conv1.weight"].shape[0]} if "conv1.weight" in tensors else about


def _vit(tensors: Mapping[str, Tensor], arch: str, width: int) -> dict[str, Any]:
    shape = tensors["patch_embed.proj.weight"].shape
    if len(shape) != 4:
        return {"arch": f"a ViT of patches of {len(shape) - 2} dimensions"}
    dim, _, _, patch_px = shape
    depth = _count(tensors, r"blocks\.(\d+)\.")
    if NUM_HEADS.get(arch, 0) * width != dim:
        published = {heads * PUBLISHED_WIDTH: name for name, heads in NUM_HEADS.items()}
        arch, width = published.get(dim, ""), PUBLISHED_WIDTH
    if not arch or depth != DEPTH:
        return {"arch": f"a ViT of {depth} blocks of {dim} channels"}
    registers = tensors.get("register_tokens")
    return {
        "arch": arch,
        "width": width,
        "patch_px": patch_px,
        "registers": 0 if registers is None else registers.shape[1],
        "layer_scale": "blocks.0.ls1.gamma" in tensors,
    }


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Number of values of a numbered part of the names."""
    return 1 + max((int(found[1]) for name in tensors if (found := re.match(pattern, name))), default=-1)
