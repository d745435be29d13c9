"""Goodput of pretraining: its whole loop beside the bare network on random tensors of the same shapes.

The whole loop reads, augments, goes forward and backward, steps the optimiser and keeps keys or queue.
The bare network does the same number of forward and backward passes, and nothing else.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from stages.backbone.resnet import ResNet
from stages.core.device import autocast, place
from stages.imaging.batches import ImageSource
from stages.pretrain import pretrain
from stages.pretraining.encoder import DenseEncoder, Encoder
from stages.pretraining.pretrainer import Pretrainer
from stages.pretraining.slotcon import SlotEncoder
from stages.settings.schema_pretrain import Pretrain
from stages.settings.section import Backbone
from tests.bench.interleaved import compare
from tests.datasets import read_preset

# (architecture, px of a view, px as stored, images of a batch, precision) for each kind of device
SETUPS = {"cpu": ("resnet18", 128, 192, 32, "float32"), "cuda": ("resnet50", 224, 320, 256, "bfloat16")}
NUM_STEPS = 2  # of one turn


# A run that is neither resumed nor saved.
NO_STATE: Any = SimpleNamespace(resume=lambda *_: (0, 0), is_due=lambda: False)


def measure(device: torch.device, turns: int, compiled: bool = False) -> Iterator[str]:
    """One line for each method."""
    for method in ("mocov2", "swav", "densecl", "slotcon"):
        yield _measure(method, device, turns, compiled)


def _measure(method: str, device: torch.device, turns: int, compiled: bool) -> str:
    arch, image_px, stored_px, batch_size, precision = SETUPS[device.type]
    backbone = Backbone(arch=arch, width=64, stem_stride=4, patch_px=16, registers=0, layer_scale=False)
    settings = _settings(method, image_px, batch_size)
    count = NUM_STEPS * batch_size
    stored = np.random.default_rng(0).integers(0, 256, (count, stored_px, stored_px, 3), np.uint8)
    pretrainer = Pretrainer(
        settings,
        backbone,
        None,
        num_images=count,
        seed=0,
        precision=precision,
        device=device,
        compiled=compiled,
    )
    images = ImageSource(stored, device)
    encoder = place(_encoder(settings, ResNet(arch, 64, 4)), device)
    passes = [(_random(*shape, device), learns) for shape, learns in _passes(settings)]

    def whole() -> None:
        with contextlib.redirect_stdout(None):
            pretrain(pretrainer, images, SimpleNamespace(seed=0, pretrain=settings), NO_STATE)

    def bare() -> None:
        for _ in range(NUM_STEPS):
            for view, learns in passes:
                with torch.set_grad_enabled(learns), autocast(device, precision):
                    encoded = encoder(view)
                if learns:
                    torch.stack([part.float().sum() for part in encoded]).sum().backward()
            encoder.zero_grad()

    found = compare(whole, bare, turns=turns, device=device)
    return (
        f"pretraining {method} {arch} {image_px} px, batch {batch_size}, {precision}"
        f"{', compiled' if compiled else ''}: "
        f"loop {count / found.seconds:.1f} images/s, bare network {count / found.bare_seconds:.1f} images/s, "
        f"goodput {found.goodput:.3f}"
    )


def _settings(method: str, image_px: int, batch_size: int) -> Pretrain:
    """One epoch of the committed settings at another size; small views have SwAV's share of the side."""
    settings = read_preset("demo").pretrain
    swav = settings.swav.model_copy(update={"local_px": image_px * 96 // 224, "queue_size": batch_size})
    changes: dict[str, Any] = {"image_px": image_px, "batch_size": batch_size, "queue_size": batch_size}
    changes["dense"] = settings.dense.model_copy(update={"image_px": image_px, "dilate": False})
    return settings.model_copy(update={**changes, "method": method, "epochs": 1, "swav": swav})


def _passes(settings: Pretrain) -> list[tuple[tuple[int, int], bool]]:
    """(Images, side) of each pass of a step through the network, and whether gradients flow back."""
    size, side = settings.batch_size, settings.image_px
    if settings.method == "swav":
        local = settings.swav.local_crops * size, settings.swav.local_px
        return [((2 * size, side), True), (local, True)]
    both_ways = settings.symmetric or settings.method == "slotcon"
    return [((size, side), learns) for learns in (True, False)] * (2 if both_ways else 1)


def _encoder(settings: Pretrain, trunk: ResNet) -> nn.Module:
    if settings.method == "slotcon":
        own = settings.slotcon
        return SlotEncoder(trunk, own.hidden_dim, settings.projection_dim, own.num_prototypes)
    kind = DenseEncoder if settings.method == "densecl" else Encoder
    return kind(trunk, settings.projection_dim, head_batch_norm=settings.head_batch_norm)


def _random(count: int, side: int, device: torch.device) -> torch.Tensor:
    return torch.randn(count, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
