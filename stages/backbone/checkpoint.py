"""Networks of this project as files that say how to build them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.backbone.resnet import BLOCKS, ResNet
from stages.backbone.trunk import Trunk
from stages.backbone.vit import ViT
from stages.core.tensors import read_tensors, write_tensors
from stages.settings.errors import UserError
from stages.settings.section import Backbone


def save_backbone(
    path: Path, backbone: Trunk, settings: Backbone, heads: Mapping[str, Tensor] | None = None
) -> None:
    """Write a trunk's weights with its architecture.

    Args:
        path: to write.
        backbone: the trunk.
        settings: its architecture.
        heads: what pretraining put on top, where later stages need it: of SwAV `prototypes.weight` [P, D] and
            `projection.*` of the head that leads from the global feature to them.
    """
    heads = heads or {}
    about = {"backbone": describe(settings), "heads": sorted(heads)}
    write_tensors(path, {**backbone.state_dict(), **heads}, about)


def load_backbone(path: Path, settings: Backbone) -> Trunk:
    """Read a trunk's weights into the architecture that params.yaml names; heads are left out by name.

    Raises:
        UserError: the file holds another architecture, or something that this version does not know.
    """
    tensors, about = read_tensors(path)
    if about.get("backbone") != describe(settings):
        raise UserError(
            f"{path}: holds {about.get('backbone')}, but params.yaml says backbone: {describe(settings)}; "
            "run `dvc repro` to pretrain the backbone of params.yaml"
        )
    backbone = build_backbone(describe(settings))
    try:
        backbone.load_state_dict(
            {name: value for name, value in tensors.items() if name not in about["heads"]}
        )
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be loaded as a backbone by this version ({error})") from error
    return backbone


def describe(settings: Backbone) -> dict[str, Any]:
    """The settings that this architecture uses; the others may change and it stays the same."""
    if settings.arch in BLOCKS:
        return settings.model_dump(include={"arch", "width", "stem_stride"})
    return settings.model_dump(include={"arch", "width", "patch_px", "registers", "layer_scale"})


def build_backbone(about: Mapping[str, Any]) -> Trunk:
    """An untrained trunk of the architecture that `describe` wrote."""
    if about["arch"] in BLOCKS:
        return ResNet(about["arch"], about["width"], about["stem_stride"])
    return ViT(
        about["arch"],
        about["width"],
        about["patch_px"],
        num_registers=about["registers"],
        has_layer_scale=about["layer_scale"],
    )
