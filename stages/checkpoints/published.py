"""Converts published checkpoints to the trunk and heads of this project.

Supported: MoCo v2, SwAV (releases and training files), torchvision, DenseCL and others of OpenSelfSup,
PiCIE, DINO, DINOv2, and backbones of this project. Prefixes are detected automatically. Tensors outside the
trunk are kept as heads if their names are known and ignored otherwise.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.backbone.checkpoint import build_backbone, describe
from stages.backbone.trunk import Trunk
from stages.backbone.vit import resample_positions
from stages.checkpoints.checkpoint_file import choose, read_networks
from stages.core.hashes import check_sha256
from stages.core.repository import start_path
from stages.core.seeds import derive
from stages.runtime.progress import say
from stages.settings.errors import UserError, listed
from stages.settings.schema_pretrain import Pretrain
from stages.settings.section import Backbone

HEADS = ("projection.", "prototypes.", "classifier.")
REMEDY = "set pretrain.init to a checkpoint, absolute or relative to the root of the repository"
COUNTER = "num_batches_tracked"  # batch-norm step counter, unused
MOST_NAMES = 5  # maximum number of names in a message
# Name parts of known tensors outside the trunk; they are not reported as unexpected.
BESIDE = {
    *("fc", "head", "heads", "neck", "decoder", "classifier", "projection", "projection_head", "prototypes"),
    *("predictor", "dino_head", "ibot_head", "encoder_k", "queue", "queue_ptr"),
    *("mask_token", COUNTER),
}


@dataclass(frozen=True)
class Published:
    """The tensors read from a checkpoint.

    Attributes:
        trunk: trunk tensors, by the names of this project.
        heads: projection head, prototypes, classifier, by the names of `heads`.
        sha256: of the file.
        name: of the network in the file: keys, then the prefix of its tensor names.
        unexpected: tensors of the file with unknown names.
    """

    trunk: dict[str, Tensor]
    heads: dict[str, Tensor]
    sha256: str
    name: str
    unexpected: tuple[str, ...]

    def fill(self, trunk: Trunk) -> None:
        """Load the tensors into a trunk."""
        trunk.load_state_dict({**trunk.state_dict(), **self.trunk})

    def fill_head(self, kind: str, head: nn.Module) -> bool:
        """Load the projection head or the prototypes if their layers match; return whether they did."""
        start = f"{kind}."
        found = {
            name.removeprefix(start): value for name, value in self.heads.items() if name.startswith(start)
        }
        expected = {name: value for name, value in head.state_dict().items() if not name.endswith(COUNTER)}
        fits = {name: value.shape for name, value in found.items()} == {
            name: value.shape for name, value in expected.items()
        }
        if fits:
            head.load_state_dict({**head.state_dict(), **found})
        return fits

    def heads_for(self, method: str) -> dict[str, Tensor]:
        """The heads that go on to later stages if nothing is trained.

        A classifier does so with `pretrain.method` supervised alone: its classes become pseudo-labels, and
        people have chosen them.
        """
        left_out = () if method == "supervised" else ("classifier.",)
        return {name: value for name, value in self.heads.items() if not name.startswith(left_out)}

    def report(self) -> dict[str, Any]:
        """Counts of matched tensors, and the heads found."""
        return {
            "matched": len(self.trunk),
            "unexpected": len(self.unexpected),
            "heads": " ".join(sorted({name.split(".")[0] for name in self.heads})) or "none",
            "sha256": self.sha256,
        }


def read_published(path: Path, settings: Backbone, pinned_sha256: str, key: str = "") -> Published:
    """Read a checkpoint for the architecture that params.yaml names.

    Args:
        path: of the file.
        settings: the architecture.
        pinned_sha256: required SHA-256 of the file; '' accepts any file.
        key: part of the name of the network to take, if the file has several; '' for a choice by name.

    Raises:
        UserError: the file has another hash, cannot be read, has another architecture, or lacks a tensor of
            the trunk.
    """
    sha256 = check_sha256(path, pinned_sha256, "pretrain.init", REMEDY)
    networks = {
        keys: {_unchunked(name): value for name, value in tensors.items()}
        for keys, tensors in read_networks(path).items()
    }
    found = choose(path, networks, settings, key)
    tensors = found.tensors
    _check_architecture(path, found.about, settings)
    with torch.device("meta"):
        whole = build_backbone(describe(settings)).state_dict()
    expected = {name: value for name, value in whole.items() if not name.endswith(COUNTER)}
    prefix = found.prefix
    trunk = {name: tensors[prefix + name].float() for name in expected if prefix + name in tensors}
    if "pos_embed" in trunk:
        trunk["pos_embed"] = _fit_positions(trunk["pos_embed"], expected["pos_embed"].shape[1])
    _check_match(path, trunk, expected)
    others = [name for name in tensors if name.removeprefix(prefix) not in trunk]
    unexpected = [name for name in others if not BESIDE & set(name.split("."))]
    heads = _heads({name.removeprefix(prefix): tensors[name] for name in others}, prefix)
    return Published(trunk, heads, sha256, found.name, tuple(unexpected))


def _unchunked(name: str) -> str:
    """Remove the chunk number from DINOv2 block names; the second number counts blocks across all chunks."""
    return re.sub(r"\bblocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def _check_architecture(path: Path, found: Mapping[str, Any], settings: Backbone) -> None:
    ours = settings.model_dump()
    if differences := {key: value for key, value in found.items() if ours[key] != value}:
        theirs = ", ".join(f"backbone.{key}: {value}" for key, value in differences.items())
        asked = ", ".join(f"backbone.{key}: {ours[key]}" for key in differences)
        raise UserError(
            f"{path}: holds {theirs}, but params.yaml says {asked}; change params.yaml to match, "
            "or choose another file"
        )


def _check_match(path: Path, trunk: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if wrong := [name for name in trunk if trunk[name].shape != expected[name].shape]:
        shapes = [
            f"{name} {list(trunk[name].shape)} instead of {list(expected[name].shape)}" for name in wrong
        ]
        raise UserError(
            f"{path}: tensor shapes differ from the backbone in params.yaml ({listed(shapes, MOST_NAMES)}); "
            "the `backbone` settings do not support this architecture"
        )
    if missing := [name for name in expected if name not in trunk]:
        raise UserError(
            f"{path}: lacks {len(missing)} of the backbone's {len(expected)} tensors "
            f"({listed(missing, MOST_NAMES)}); the file is truncated or of another architecture"
        )


def _fit_positions(found: Tensor, length: int) -> Tensor:
    """Resample positional embeddings to the grid of this project for the patch size."""
    if math.isqrt(found.shape[1] - 1) ** 2 != found.shape[1] - 1:
        return found  # not a square grid; the shape check reports it
    side = math.isqrt(length - 1)
    return torch.cat([found[:, :1], resample_positions(found[:, 1:], side, side)], 1)


def _heads(others: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the heads among the non-trunk tensors and rename them to the names of this project."""
    # `fc` is the classifier in torchvision but the projection head in MoCo, whose prefix contains `encoder`.
    fc = (
        {"fc.0.": "projection.0.", "fc.2.": "projection.3."}
        if "encoder" in prefix
        else {"fc.": "classifier."}
    )
    renamed = {**fc, "projection_head.": "projection.", **{name: name for name in HEADS}}
    heads = {
        new + name.removeprefix(old): value.float()
        for name, value in others.items()
        for old, new in renamed.items()
        if name.startswith(old) and not name.endswith(COUNTER)
    }
    if "projection.1.running_mean" in heads and "projection.0.bias" in heads:
        # Our head has no bias before batch norm, so SwAV's is folded into the running mean.
        heads["projection.1.running_mean"] = heads["projection.1.running_mean"] - heads.pop(
            "projection.0.bias"
        )
    several = sorted(name for name in heads if name.startswith("prototypes.prototypes"))
    if several:  # DeepCluster-v2 has several prototype sets in one space
        heads["prototypes.weight"] = torch.cat([heads.pop(name) for name in several])
    return heads


def read_start(settings: Pretrain, backbone: Backbone) -> Published | None:
    """Read the checkpoint `pretrain.init` and log a summary; None if it is not set.

    Raises:
        UserError: the file does not match, or lacks a classifier that the method needs.
    """
    path = start_path(settings.init)
    if path is None:
        return None
    start = read_published(path, backbone, settings.init_sha256, settings.init_key)
    say("pretrain", init=path, network=repr(start.name), **start.report())
    if start.unexpected:
        say("pretrain", unexpected=", ".join(start.unexpected))
    if settings.method == "supervised" and "classifier.weight" not in start.heads:
        raise UserError(
            f"{path}: has no classifier (fc.weight), but pretrain.method: supervised needs one for its "
            "classes; set method: none to use only the backbone weights"
        )
    return start


def as_start(trunk: Trunk, heads: Mapping[str, Tensor]) -> Published:
    """A trunk and heads that were just trained, as they would be read from their file."""
    kept, heads = (
        {name: value.cpu() for name, value in tensors.items() if not name.endswith(COUNTER)}
        for tensors in (trunk.state_dict(), heads)
    )
    return Published(kept, heads, sha256="", name="", unexpected=())


def start_trunk(backbone: Backbone, start: Published | None, seed: int) -> Trunk:
    """The trunk before training: initialized from the seed, then from the checkpoint if there is one."""
    torch.manual_seed(derive(seed, "pretrain", "weights"))
    trunk = build_backbone(describe(backbone))
    if start is not None:
        start.fill(trunk)
    return trunk
