"""Goodput of pretraining: its whole loop beside the bare network on random tensors of the same shapes.

The whole loop reads, augments, goes forward and backward, steps the optimiser and keeps keys or queue.
The bare network does the same number of forward and backward passes, and nothing else.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from stages.backbone.checkpoint import build_backbone, describe
from stages.core.device import autocast, place
from stages.core.graph import Wish
from stages.core.history import History
from stages.imaging.batches import ImageSource
from stages.pretrain import pretrain
from stages.pretraining.encoder import DenseEncoder, Encoder
from stages.pretraining.pretrainer import FIGURES, Pretrainer
from stages.pretraining.slot_networks import SlotEncoder
from stages.settings.schema import Params
from stages.settings.schema_pretrain import Pretrain
from stages.settings.section import Backbone
from tests.bench.interleaved import Comparison, compare
from tests.bench.lines import WISHES, Line
from tests.datasets import read_preset


class Setup(NamedTuple):
    """Sizes of the views, of the images as stored, and of a batch."""

    backbone: Backbone
    image_px: int
    stored_px: int
    batch_size: int
    precision: str
    local_px: int


def _published(arch: str, image_px: int, stored_px: int, batch_size: int, precision: str) -> Setup:
    """A network as published; small views have SwAV's share of the side."""
    backbone = Backbone(arch=arch, width=64, stem_stride=4, patch_px=16, registers=0, layer_scale=False)
    return Setup(backbone, image_px, stored_px, batch_size, precision, image_px * 96 // 224)


SETUPS = {
    "cpu": _published("resnet18", 128, 192, 32, "float32"),
    "cuda": _published("resnet50", 224, 320, 256, "bfloat16"),
}
METHODS = ("mocov2", "swav", "densecl", "slotcon")
# Of one turn. The more they are, the less the end of an epoch weighs; on a CPU each takes seconds.
NUM_STEPS = {"cpu": 2, "cuda": 16}

NO_STATE: Any = SimpleNamespace(load=lambda: None, is_due=lambda: False)  # of a run that is never saved


def measure(device: torch.device, turns: int, compiled: bool = False) -> Iterator[Line]:
    """The goodput of each method, and a step of the demo."""
    setup = SETUPS[device.type]
    for method in METHODS:
        found = _compare(method, setup, device, turns, compiled)
        count = NUM_STEPS[device.type] * setup.batch_size
        yield Line(
            f"pretraining {_name(method, setup, compiled)}: goodput",
            f"{count / found.seconds:.1f} images/s",
            f"bare network {count / found.bare_seconds:.1f} images/s",
            found.goodput,
        )
    demo = read_preset("demo").model_copy(update={"compile": compiled})
    for wish, said in WISHES[device.type].items():
        yield step_of(demo, device, turns, wish, said)


def step_of(params: Params, device: torch.device, turns: int, wish: Wish, said: str) -> Line:
    """A step with the method and the sizes of a preset, else as in the demo; `said` ends the name."""
    own = params.pretrain
    setup = Setup(
        params.backbone, own.image_px, params.prepare.train_px, own.batch_size, params.precision,
        own.swav.local_px,
    )  # fmt: skip
    found = _compare(own.method, setup, device, turns, params.compile, wish)
    return Line(
        f"a step of pretraining, {params.preset}, {_name(own.method, setup, params.compile)}{said}",
        f"{1000 * found.seconds / NUM_STEPS[device.type]:.1f} ms",
        f"bare network {1000 * found.bare_seconds / NUM_STEPS[device.type]:.1f} ms",
        found.goodput,
    )


def _name(method: str, setup: Setup, compiled: bool) -> str:
    sizes = f"{setup.image_px} px, batch {setup.batch_size}, {setup.precision}"
    network = f"{setup.backbone.arch} of width {setup.backbone.width}"
    return f"{method}, {network}, {sizes}{', compiled' if compiled else ''}"


def _compare(
    method: str, setup: Setup, device: torch.device, turns: int, compiled: bool, wish: Wish = "auto"
) -> Comparison:
    settings = _settings(method, setup)
    num_steps = NUM_STEPS[device.type]
    count = num_steps * setup.batch_size
    shape = (count, setup.stored_px, setup.stored_px, 3)
    images = ImageSource(np.random.default_rng(0).integers(0, 256, shape, np.uint8), device)
    with contextlib.redirect_stdout(None):
        pretrainer = Pretrainer(
            settings,
            setup.backbone,
            None,
            num_images=count,
            seed=0,
            precision=setup.precision,
            device=device,
            compiled=compiled,
            cuda_graph=wish,
        )
    encoder = place(_encoder(settings, setup.backbone), device)
    passes = [(random_views(*shape, device), learns) for shape, learns in _passes(settings)]

    def whole() -> None:
        with contextlib.redirect_stdout(None):
            pretrain(pretrainer, images, History(FIGURES, device), NO_STATE, seed=0)

    def bare() -> None:
        for _ in range(num_steps):
            for view, learns in passes:
                with torch.set_grad_enabled(learns), autocast(device, setup.precision):
                    encoded = encoder(view)
                if learns:
                    torch.stack([part.float().sum() for part in encoded]).sum().backward()
            encoder.zero_grad()

    return compare(whole, bare, turns=turns, device=device)


def _settings(method: str, setup: Setup) -> Pretrain:
    """One epoch of the committed settings at another size."""
    settings, size = read_preset("demo").pretrain, setup.batch_size
    swav = settings.swav.model_copy(update={"local_px": setup.local_px, "queue_size": size})
    changes: dict[str, Any] = {"image_px": setup.image_px, "batch_size": size, "queue_size": size}
    changes["dense"] = settings.dense.model_copy(update={"image_px": setup.image_px, "dilate": False})
    return settings.model_copy(update={**changes, "method": method, "epochs": 1, "swav": swav})


def _passes(settings: Pretrain) -> list[tuple[tuple[int, int], bool]]:
    """(Images, side) of each pass of a step through the network, and whether gradients flow back."""
    size, side = settings.batch_size, settings.image_px
    if settings.method == "swav":
        local = settings.swav.local_crops * size, settings.swav.local_px
        return [((2 * size, side), True), (local, True)]
    both_ways = settings.symmetric or settings.method == "slotcon"
    return [((size, side), learns) for learns in (True, False)] * (2 if both_ways else 1)


def _encoder(settings: Pretrain, backbone: Backbone) -> nn.Module:
    trunk = build_backbone(describe(backbone))
    if settings.method == "slotcon":
        own = settings.slotcon
        return SlotEncoder(trunk, own.hidden_dim, settings.projection_dim, own.num_prototypes)
    kind = DenseEncoder if settings.method == "densecl" else Encoder
    return kind(trunk, settings.projection_dim, head_batch_norm=settings.head_batch_norm)


def random_views(count: int, side: int, device: torch.device) -> torch.Tensor:
    """Random images in the layout of the networks."""
    return torch.randn(count, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
