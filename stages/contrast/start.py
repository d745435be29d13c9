"""Where pretraining starts: at random weights, or at a checkpoint that somebody published (5.1)."""

import os
from pathlib import Path

import torch

from stages.nets.checkpoint import build_backbone, describe
from stages.nets.published import Published, read_published
from stages.nets.trunk import Trunk
from stages.runtime.errors import UserError
from stages.runtime.progress import say
from stages.runtime.schema import Backbone, Pretrain
from stages.runtime.seeds import derive


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
                f"{path}: has no classifier (fc.weight), which pretrain.method: supervised takes its classes "
                "from; set method: none for its weights alone"
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
