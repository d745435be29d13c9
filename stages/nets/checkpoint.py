"""Networks of this project as files that say how to build them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.nets.resnet import ResNet
from stages.runtime.errors import UserError
from stages.runtime.schema import Backbone
from stages.runtime.tensors import read_tensors, write_tensors

HEADS = ("prototypes.", "projection.")  # beside the trunk in the same file


def save_backbone(
    path: Path, backbone: ResNet, settings: Backbone, heads: Mapping[str, Tensor] | None = None
) -> None:
    """Write a trunk's weights with its architecture.

    Args:
        path: to write.
        backbone: the trunk.
        settings: its architecture.
        heads: what pretraining put on top, where later stages need it: of SwAV `prototypes.weight` [P, D] and
            `projection.*` of the head that leads from the global feature to them.
    """
    write_tensors(path, {**backbone.state_dict(), **(heads or {})}, {"backbone": settings.model_dump()})


def load_backbone(path: Path, settings: Backbone) -> ResNet:
    """Read a trunk's weights into the architecture that params.yaml names.

    Raises:
        UserError: the file holds another architecture.
    """
    tensors, about = read_tensors(path)
    if about.get("backbone") != settings.model_dump():
        raise UserError(
            f"{path}: holds {about.get('backbone')}, but params.yaml says backbone: {settings.model_dump()}; "
            "run `dvc repro` to pretrain this one"
        )
    backbone = build_backbone(settings.model_dump())
    backbone.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(HEADS)})
    return backbone


def build_backbone(about: dict[str, Any]) -> ResNet:
    """An untrained trunk of the architecture that a file names."""
    return ResNet(about["arch"], about["width"], about["stem_stride"])
