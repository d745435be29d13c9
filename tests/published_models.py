"""Tiny checkpoints in the formats in which others publish theirs, made on the spot."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.backbone.checkpoint import build_backbone
from stages.backbone.trunk import Trunk

RESNET = {"arch": "resnet18", "width": 8, "stem_stride": 2}
VIT = {"arch": "vit_small", "width": 2, "patch_px": 8, "registers": 0, "layer_scale": False}
DINOV2 = {**VIT, "patch_px": 14, "layer_scale": True}
REGISTERS = {**DINOV2, "registers": 4}

Tensors = dict[str, Tensor]


def random_trunk(about: dict[str, Any], seed: int = 0) -> Trunk:
    """A trunk in evaluation mode whose every tensor has values of its own."""
    torch.manual_seed(seed)
    trunk = build_backbone(about).eval()
    with torch.no_grad():
        for name, value in trunk.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) * 0.2 + 0.9 * name.endswith("var"))
    return trunk


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors under longer names."""
    return {prefix + name: value for name, value in tensors.items()}


def projection_head(kind: str, channels: int = 64, dim: int = 5, prototypes: int = 7) -> Tensors:
    """What MoCo (v1, v2), SwAV or DeepCluster-v2 have after the trunk."""
    linear = {"weight": torch.rand(channels, channels), "bias": torch.rand(channels)}
    last = {"weight": torch.rand(dim, channels) - 0.5, "bias": torch.rand(dim)}
    if kind == "mocov1":
        return prefixed("fc.", last)
    if kind == "mocov2":
        return prefixed("fc.0.", linear) | prefixed("fc.2.", last)
    norm = {name: torch.rand(channels) + 0.5 for name in ("weight", "bias", "running_mean", "running_var")}
    norm["num_batches_tracked"] = torch.tensor(3)
    head = prefixed("0.", linear) | prefixed("1.", norm) | prefixed("3.", last)
    if kind == "swav":
        sets = {"prototypes.weight": torch.rand(prototypes, dim) - 0.5}
    else:
        sets = {f"prototypes.prototypes{i}.weight": torch.rand(prototypes, dim) - 0.5 for i in range(3)}
    return prefixed("projection_head.", head) | sets


def classifier(classes: int = 10, channels: int = 64) -> Tensors:
    """torchvision's last layer."""
    return {"fc.weight": torch.rand(classes, channels) - 0.5, "fc.bias": torch.rand(classes)}


def _moco(trunk: Tensors) -> dict[str, Any]:
    network = prefixed("module.encoder_q.", trunk | projection_head("mocov2"))
    return {"epoch": 800, "arch": "resnet50", "state_dict": network, "optimizer": {"state": {}}}


def _moco_training(trunk: Tensors) -> dict[str, Any]:
    content = _moco(trunk)
    slow = {name: value + 1 for name, value in (trunk | projection_head("mocov2")).items()}
    queue = {"module.queue": torch.rand(5, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    # The momentum encoder stands first: as in a file that is sorted by name.
    content["state_dict"] = prefixed("module.encoder_k.", slow) | content["state_dict"] | queue
    return content


def _moco_v1(trunk: Tensors) -> dict[str, Any]:
    return {"state_dict": prefixed("module.encoder_q.", trunk | projection_head("mocov1"))}


def _swav(trunk: Tensors) -> dict[str, Any]:
    return prefixed("module.", trunk | projection_head("swav"))


def _swav_training(trunk: Tensors) -> dict[str, Any]:
    return {"epoch": 9, "state_dict": _swav(trunk), "optimizer": {"param_groups": []}, "amp": None}


def _deepcluster(trunk: Tensors) -> dict[str, Any]:
    return prefixed("module.", trunk | projection_head("deepcluster"))


def _densecl(trunk: Tensors) -> dict[str, Any]:
    return {"state_dict": trunk, "author": "OpenSelfSup"}


def _densecl_training(trunk: Tensors) -> dict[str, Any]:
    neck = {"neck.mlp.0.weight": torch.rand(4, 64), "head.criterion.weight": torch.rand(3)}
    return {"meta": {"epoch": 200}, "state_dict": prefixed("backbone.", trunk) | neck, "optimizer": {}}


def _picie(trunk: Tensors) -> dict[str, Any]:
    decoder = {
        f"module.decoder.layer{i}.{kind}": torch.rand(4) for i in range(1, 5) for kind in ("weight", "bias")
    }
    return {
        "epoch": 3,
        "args": argparse.Namespace(arch="resnet18", lr=1e-4, data="path"),
        "state_dict": prefixed("module.backbone.", trunk) | decoder,
        "classifier1_state_dict": {"module.weight": torch.rand(27, 4, 1, 1), "module.bias": torch.rand(27)},
        "optimizer": {"state": {}},
    }


def _dino_training(trunk: Tensors) -> dict[str, Any]:
    student = {name: value + 1 for name, value in trunk.items()}
    head = {"head.mlp.0.weight": torch.rand(4, 12), "head.last_layer.weight_v": torch.rand(4, 4)}
    return {
        "student": prefixed("module.", prefixed("backbone.", student) | head),
        "teacher": prefixed("backbone.", trunk) | head,
        "optimizer": {},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small"),
        "fp16_scaler": None,
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def _dinov2(trunk: Tensors) -> dict[str, Any]:
    return trunk | {"mask_token": torch.zeros(1, 12)}


def _dinov2_training(trunk: Tensors) -> dict[str, Any]:
    def chunked(name: str) -> str:
        parts = name.split(".")
        return ".".join([parts[0], str(int(parts[1]) // 3), *parts[1:]]) if parts[0] == "blocks" else name

    network = {chunked(name): value for name, value in _dinov2(trunk).items()}
    heads = {"dino_head.mlp.0.weight": torch.rand(4, 12), "ibot_head.mlp.0.weight": torch.rand(4, 12)}
    return {"teacher": prefixed("backbone.", network) | heads}


# Format: the trunk that it holds, how it is wrapped, the heads that are found in it.
FORMATS: dict[str, tuple[dict[str, Any], Callable[[Tensors], dict[str, Any]], set[str]]] = {
    "mocov2": (RESNET, _moco, {"projection"}),
    "mocov2 training": (RESNET, _moco_training, {"projection"}),
    "mocov1": (RESNET, _moco_v1, set()),
    "swav": (RESNET, _swav, {"projection", "prototypes"}),
    "swav training": (RESNET, _swav_training, {"projection", "prototypes"}),
    "deepcluster-v2": (RESNET, _deepcluster, {"projection", "prototypes"}),
    "torchvision": (RESNET, lambda trunk: trunk | classifier(), {"classifier"}),
    "densecl": (RESNET, _densecl, set()),
    "densecl training": (RESNET, _densecl_training, set()),
    "picie": (RESNET, _picie, set()),
    "dino resnet": (RESNET, lambda trunk: trunk, set()),
    "dino resnet training": (RESNET, _dino_training, set()),
    "dino": (VIT, lambda trunk: trunk, set()),
    "dino training": (VIT, _dino_training, set()),
    "dinov2": (DINOV2, _dinov2, set()),
    "dinov2 with registers": (REGISTERS, _dinov2, set()),
    "dinov2 training": (DINOV2, _dinov2_training, set()),
}


def write_checkpoint(path: Path, name: str, trunk: Trunk | None = None, *, legacy: bool = False) -> Trunk:
    """Write one of `FORMATS`; the trunk that is in it. `legacy` is PyTorch's format before 1.6."""
    about, wrap, _ = FORMATS[name]
    trunk = trunk or random_trunk(about)
    torch.save(wrap(dict(trunk.state_dict())), path, _use_new_zipfile_serialization=not legacy)
    return trunk
