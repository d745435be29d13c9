"""Reads checkpoints of other projects as named tensors, without executing code from the file."""

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.backbone.resnet import BLOCKS
from stages.backbone.vit import DEPTH, NUM_HEADS
from stages.runtime.progress import say
from stages.settings.errors import UserError, listed
from stages.settings.section import Backbone

NO_NETWORKS = ("optimizer", "optimizer_state_dict", "optimizers", "scheduler", "amp", "scaler")
COMPILED = "_orig_mod."  # in the names of networks that torch.compile has wrapped
LFS_POINTER = b"version https://git-lfs"
MOST_NAMES = 5  # tensors listed in a message
MOST_CHARACTERS = 200  # maximum length of a quoted reader error


def read_networks(path: Path) -> dict[str, dict[str, Tensor]]:
    """The networks in a .safetensors file or a PyTorch file: their tensors, by the keys that lead to them.

    Training programs store several mappings of tensors in one file, such as `student` and `teacher`, or
    `state_dict` within `model`. A file that is one mapping of tensors has the key ''.

    Raises:
        UserError: the file is not a checkpoint, is truncated, contains code, or has no tensors.
    """
    networks = dict(_networks(_load(path), ""))
    if not networks:
        raise UserError(
            f"{path}: contains no named tensors, so it is not a network checkpoint; save the state_dict"
        )
    return networks


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training files may store their command line as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # invalid bytes can raise any type of error
        reason = " ".join(str(error).split())[:MOST_CHARACTERS]
        seems = _what_it_is(path, reason)
        raise UserError(
            f"{path}: {seems}cannot be loaded as a checkpoint without executing code from it "
            f"({type(error).__name__}: {reason}); download it again, or save only its state_dict"
        ) from error


def _what_it_is(path: Path, reason: str) -> str:
    """What a file that is no checkpoint looks like, for a message; empty if it looks like nothing known."""
    with path.open("rb") as file:
        start = file.read(512)
    size = path.stat().st_size
    if not start:
        return "is empty, "
    if start.startswith(LFS_POINTER):
        return "is a Git LFS pointer in place of the file (run `git lfs pull` where it comes from), "
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not the file that its address promises, "
    is_cut_zip = start.startswith(b"PK") and not zipfile.is_zipfile(path)
    is_cut = is_cut_zip or "incomplete metadata" in reason  # of safetensors
    return f"is truncated, at {size:,} bytes, " if is_cut else ""


def _networks(content: Any, keys: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Find all mappings that hold tensors under names."""
    if not isinstance(content, Mapping):
        return
    tensors = {
        str(name).replace(COMPILED, ""): value for name, value in content.items() if isinstance(value, Tensor)
    }
    if tensors:
        yield keys, tensors
    for name, inner in content.items():
        if isinstance(name, str) and name not in NO_NETWORKS:
            yield from _networks(inner, f"{keys}.{name}" if keys else name)


PUBLISHED_WIDTH = 64
CONVOLUTIONS = {1: 2, 4: 3}  # number per residual block, by block expansion
# Words of the names of networks, by what is taken first. Teachers and averages of DINO and its kind are what
# their authors evaluate; the momentum encoder of MoCo is not.
FIRST, LAST = ("teacher", "ema"), ("student",)
NEVER = ("encoder_k", "momentum")  # only if the file has no other network


class Recognised(NamedTuple):
    """A trunk among the tensors of a file."""

    keys: str  # that lead to its mapping of tensors
    tensors: dict[str, Tensor]  # of this mapping
    prefix: str  # prefix of its tensor names
    about: dict[str, Any]  # settings of `backbone` inferred from names and shapes

    @property
    def name(self) -> str:
        """How the network is called in the file: keys and prefix."""
        return f"{self.keys}.{self.prefix}" if self.keys else self.prefix


def recognise(networks: Mapping[str, dict[str, Tensor]], arch: str, width: int) -> list[Recognised]:
    """Find the trunks in a file, the one to take first: teachers and averages, then others, then students.

    Args:
        networks: of `read_networks`.
        arch: expected architecture.
        width: expected width; the tensor shapes of a ViT do not determine its number of heads, so the
            expected architecture and width are accepted if they fit.
    """
    anchors = {"layer4.0.conv1.weight": "resnet", "patch_embed.proj.weight": "vit"}
    found = []
    for keys, tensors in networks.items():
        places = [
            (name.removesuffix(anchor), family)
            for name in tensors
            for anchor, family in anchors.items()
            if name == anchor or name.endswith(f".{anchor}")
        ]
        for prefix, family in places:
            own = {
                name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
            }
            about = _resnet(own) if family == "resnet" else _vit(own, arch, width)
            found.append(Recognised(keys, tensors, prefix, about))
    return sorted(found, key=lambda one: _rank(one.name))


def choose(path: Path, networks: Mapping[str, dict[str, Tensor]], settings: Backbone, key: str) -> Recognised:
    """The network to take: the first whose name contains `key`; says so if there are several.

    Raises:
        UserError: the file has none, or none of that name.
    """
    found = recognise(networks, settings.arch, settings.width)
    if not found:
        names = max(networks.values(), key=len)
        raise UserError(
            f"{path}: its tensor names match neither a ResNet nor a ViT "
            f"({listed([*names], MOST_NAMES)}); pretrain.init supports only these two"
        )
    chosen = next((one for one in found if key in one.name), None)
    if chosen is None:
        raise UserError(
            f"pretrain.init_key: {key!r} is in no name of a network of {path}; it has "
            f"{', '.join(repr(one.name) for one in found)}"
        )
    if len(found) > 1:
        others = ", ".join(repr(one.name) for one in found if one.name != chosen.name)
        say("pretrain", network=repr(chosen.name), others=others, choose_with="pretrain.init_key")
    return chosen


def _rank(name: str) -> int:
    words = set(re.split(r"[._]", name.lower()))
    if any(word in name for word in NEVER):
        return 3
    return 0 if words & set(FIRST) else 2 if words & set(LAST) else 1


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
