"""Published checkpoints as the trunk and the heads of this project.

Read are: MoCo v2, SwAV (releases and training files), torchvision, DenseCL and others of OpenSelfSup,
PiCIE, DINO, DINOv2, and the backbones that this project writes. Prefixes are probed; what is no part of
a trunk is recognised by its name and kept as a head, or left out.
"""

import math
import os
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
from stages.checkpoints.checkpoint_file import check_sha256, read_checkpoint, recognise
from stages.core.seeds import derive
from stages.runtime.progress import say
from stages.settings.errors import UserError
from stages.settings.schema_pretrain import Pretrain
from stages.settings.section import Backbone

HEADS = ("projection.", "prototypes.", "classifier.")


LEAST_MATCHED = 0.99  # share of the trunk's tensors that a file has to hold
COUNTER = "num_batches_tracked"  # of a batch norm; nothing reads it
MOST_NAMES = 5  # that a message shows
# Parts of names that are no trunk, and are left out without a word where they are no head either.
BESIDE = {
    *("fc", "head", "heads", "neck", "decoder", "classifier", "projection", "projection_head", "prototypes"),
    *("predictor", "dino_head", "ibot_head", "encoder_k", "queue", "queue_ptr"),
    *("mask_token", COUNTER),
}


@dataclass(frozen=True)
class Published:
    """What a checkpoint gave.

    Attributes:
        trunk: tensors by the names of this project.
        heads: projection head, prototypes, classifier, by the names of `heads`.
        sha256: of the file.
        prefix: before the trunk's names in the file.
        missing: tensors of the trunk that the file lacks; they stay as drawn.
        unexpected: tensors of the file whose names say nothing.
    """

    trunk: dict[str, Tensor]
    heads: dict[str, Tensor]
    sha256: str
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def fill(self, trunk: Trunk) -> None:
        """Put the tensors in their places; what is missing stays as it is."""
        trunk.load_state_dict({**trunk.state_dict(), **self.trunk})

    def fill_head(self, kind: str, head: nn.Module) -> bool:
        """Put the projection or the prototypes in their place, if they have the same layers; whether so."""
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

    def report(self) -> dict[str, Any]:
        """The figures of the match, and the heads that were found."""
        return {
            "matched": len(self.trunk),
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
            "heads": " ".join(sorted({name.split(".")[0] for name in self.heads})) or "none",
            "sha256": self.sha256,
        }


def read_published(path: Path, settings: Backbone, pinned_sha256: str) -> Published:
    """Read a checkpoint into the architecture that params.yaml names.

    Args:
        path: of the file.
        settings: the architecture.
        pinned_sha256: that the file must have; '' accepts anything.

    Raises:
        UserError: the file is not the pinned one, cannot be read, is of another architecture, or holds under
            99 % of the trunk.
    """
    sha256 = check_sha256(path, pinned_sha256)
    tensors = {_unchunked(name): value for name, value in read_checkpoint(path).items()}
    found = recognise(tensors, settings.arch, settings.width)
    if found is None:
        raise UserError(
            f"{path}: its tensor names match neither a ResNet nor a ViT ({_some(list(tensors))}); "
            "pretrain.init supports only these two"
        )
    _check_architecture(path, found.about, settings)
    with torch.device("meta"):
        whole = build_backbone(describe(settings)).state_dict()
    expected = {name: value for name, value in whole.items() if not name.endswith(COUNTER)}
    prefix = found.prefix
    trunk = {name: tensors[prefix + name].float() for name in expected if prefix + name in tensors}
    if "pos_embed" in trunk:
        trunk["pos_embed"] = _fit_positions(trunk["pos_embed"], expected["pos_embed"].shape[1])
    missing = [name for name in expected if name not in trunk]
    _check_match(path, trunk, expected, missing)
    others = [name for name in tensors if name.removeprefix(prefix) not in trunk]
    unexpected = [name for name in others if not BESIDE & set(name.split("."))]
    heads = _heads({name.removeprefix(prefix): tensors[name] for name in others}, prefix)
    return Published(trunk, heads, sha256, prefix, tuple(missing), tuple(unexpected))


def _unchunked(name: str) -> str:
    """DINOv2 trains blocks in chunks: the first number is the chunk's, the second goes through all chunks."""
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


def _check_match(
    path: Path, trunk: Mapping[str, Tensor], expected: Mapping[str, Tensor], missing: list[str]
) -> None:
    if wrong := [name for name in trunk if trunk[name].shape != expected[name].shape]:
        shapes = [
            f"{name} {list(trunk[name].shape)} instead of {list(expected[name].shape)}" for name in wrong
        ]
        raise UserError(
            f"{path}: tensor shapes differ from the backbone in params.yaml ({_some(shapes)}); "
            "the `backbone` settings do not support this architecture"
        )
    if len(trunk) < LEAST_MATCHED * len(expected):
        raise UserError(
            f"{path}: lacks {len(missing)} of the backbone's {len(expected)} tensors ({_some(missing)}), but "
            f"{LEAST_MATCHED:.0%} are required; the file is truncated or of another architecture"
        )


def _fit_positions(found: Tensor, length: int) -> Tensor:
    """Positional embeddings on the grid that this project keeps for the patch size."""
    if math.isqrt(found.shape[1] - 1) ** 2 != found.shape[1] - 1:
        return found  # of no square grid; the check of the shapes will say so
    side = math.isqrt(length - 1)
    return torch.cat([found[:, :1], resample_positions(found[:, 1:], side, side)], 1)


def _heads(others: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The heads among the tensors beside a trunk, by the names of this project."""
    # `fc` is the classifier of torchvision and the projection head of MoCo, whose encoders say so.
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
        # SwAV's head adds a bias that the batch norm behind it takes away; ours has none.
        heads["projection.1.running_mean"] = heads["projection.1.running_mean"] - heads.pop(
            "projection.0.bias"
        )
    several = sorted(name for name in heads if name.startswith("prototypes.prototypes"))
    if several:  # DeepCluster-v2 has several sets in one space
        heads["prototypes.weight"] = torch.cat([heads.pop(name) for name in several])
    return heads


def _some(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


def init_path(settings: Pretrain) -> list[Path]:
    """The checkpoint's path, if there is one; experiments run in copies, and DVC_ROOT is the repository."""
    return [Path(os.environ.get("DVC_ROOT", ".")) / settings.init] if settings.init else []


def read_start(settings: Pretrain, backbone: Backbone) -> Published | None:
    """Read `pretrain.init` and say what it gave; None where it is empty.

    Raises:
        UserError: the file does not fit, or has no classifier where the method needs one.
    """
    for path in init_path(settings):
        start = read_published(path, backbone, settings.init_sha256)
        say("pretrain", init=path, prefix=repr(start.prefix), **start.report())
        for kind, names in (("missing", start.missing), ("unexpected", start.unexpected)):
            if names:
                say("pretrain", **{kind: ", ".join(names)})
        if settings.method == "supervised" and "classifier.weight" not in start.heads:
            raise UserError(
                f"{path}: has no classifier (fc.weight), but pretrain.method: supervised needs one for its "
                "classes; set method: none to use only the backbone weights"
            )
        return start
    return None


def start_trunk(backbone: Backbone, start: Published | None, seed: int) -> Trunk:
    """The trunk before any training."""
    torch.manual_seed(derive(seed, "pretrain", "weights"))
    trunk = build_backbone(describe(backbone))
    if start is not None:
        start.fill(trunk)
    return trunk
