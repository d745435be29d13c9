"""Backbone files of this project: weights together with the architecture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.backbone.resnet import BLOCKS, ResNet
from stages.backbone.trunk import Trunk
from stages.backbone.vit import ViT
from stages.core.artefacts import MAKE_AGAIN
from stages.core.tensors import read_tensors, write_tensors
from stages.settings.errors import UserError
from stages.settings.section import Backbone


def save_backbone(
    path: Path, backbone: Trunk, settings: Backbone, heads: Mapping[str, Tensor] | None = None
) -> None:
    """Write the weights of a trunk together with its architecture.

    Args:
        path: output file.
        backbone: the trunk.
        settings: its architecture.
        heads: weights of pretraining heads that later stages need; for SwAV `prototypes.weight` [P, D] and
            `projection.*`, the head from the global feature to the prototypes.
    """
    heads = heads or {}
    about = {"backbone": describe(settings), "heads": sorted(heads)}
    write_tensors(path, {**backbone.state_dict(), **heads}, about)


def load_backbone(path: Path, settings: Backbone) -> Trunk:
    """Load trunk weights into the architecture that params.yaml names, without the heads.

    Raises:
        UserError: the file has another architecture or cannot be loaded by this version.
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
        raise UserError(
            f"{path}: cannot be loaded as a backbone by this version ({error}); {MAKE_AGAIN}"
        ) from error
    return backbone


def describe(settings: Backbone) -> dict[str, Any]:
    """The settings that determine this architecture."""
    if settings.arch in BLOCKS:
        return settings.model_dump(include={"arch", "width", "stem_stride"})
    return settings.model_dump(include={"arch", "width", "patch_px", "registers", "layer_scale"})


def build_backbone(about: Mapping[str, Any]) -> Trunk:
    """Build an untrained trunk from the settings of `describe`."""
    if about["arch"] in BLOCKS:
        return ResNet(about["arch"], about["width"], about["stem_stride"])
    return ViT(
        about["arch"],
        about["width"],
        about["patch_px"],
        num_registers=about["registers"],
        has_layer_scale=about["layer_scale"],
    )
