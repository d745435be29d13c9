"""What a training step asks of the host: calls of operators, and copies to the device.

The step runs on torch's `meta` device, whose tensors have shapes and no values, so it stands for a GPU that
the host does not wait for: whatever needs a value of a tensor to go on fails there. It takes the branches of
a GPU, at any size, in no time.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.pretraining.pretrainer import Pretrainer
from stages.settings.schema import Params
from stages.training.losses import ViewClusters
from stages.training.trainer import Trainer
from tests.bench.lines import Line
from tests.bench.training import random_trainer
from tests.datasets import read_preset

META = torch.device("meta")
NUM_STEPS = 40  # of an epoch
# Steps that are counted: method and other changes of `pretrain`.
PRETRAINING: dict[str, dict[str, Any]] = {
    "mocov2": {"method": "mocov2"},
    "mocov2, symmetric": {"method": "mocov2", "symmetric": True},
    "swav": {"method": "swav"},
    "densecl": {"method": "densecl"},
    "slotcon": {"method": "slotcon"},
}
COPIES = ("_to_copy", "copy_")
# Not of a step's own: torch asks for them around an optimizer's step.
PROFILING = ("_record_function_enter_new", "_record_function_exit")


class Operators(TorchDispatchMode):
    """Counts calls of aten operators, with those of the backward pass and of the host's own tensors.

    Attributes:
        calls: number of calls of each operator.
        copies: where in the project's code host tensors were copied to the device.

    Raises:
        AssertionError: one call takes tensors of the host and of the device; torch would take the host's for
            a number if it is one, which on a GPU is a copy that the host waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.copies: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one call and make it."""
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in PROFILING:
            return result
        self.calls[name] += 1
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor)]
        if len({one.device for one in tensors}) > 1:
            stack = traceback.extract_stack()[:-1]
            caller = [frame for frame in stack if "/stages/" in frame.filename] or stack
            where = f"{caller[-1].filename}:{caller[-1].lineno}"
            assert name in COPIES, f"{name} mixes host and device at {where}"
            self.copies.append(caller[-1].name)
        return result

    @property
    def total(self) -> int:
        """Number of calls of all operators."""
        return sum(self.calls.values())


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Let optimizers and autocast take the meta device as they take a GPU."""

    def autocast(device: str, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    # torch lacks a kernel that does nothing for this overload alone.
    library = torch.library.Library("aten", "IMPL")
    library.impl("_fused_adamw_.tensor_lr", lambda *_, **__: None, "Meta")
    supported = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    with mock.patch.object(torch, "autocast", autocast), mock.patch(supported, return_value=["meta"]):
        yield
    library._destroy()


def count_pretraining(device: torch.device, preset: str = "demo", **changes: Any) -> Operators:
    """The operators of one step of `pretrain`, the second of a run."""
    whole = read_preset(preset)
    settings = whole.pretrain.model_copy(update=changes)
    with contextlib.redirect_stdout(None):
        pretrainer = Pretrainer(
            settings,
            whole.backbone,
            None,
            num_images=NUM_STEPS * settings.batch_size,
            seed=0,
            precision=whole.precision,
            device=device,
        )
    image = torch.rand(settings.batch_size, 3, *[whole.prepare.train_px] * 2).to(device)
    pretrainer.train_step(image, 2, 0, NUM_STEPS)
    with Operators() as counted:
        pretrainer.train_step(image, 2, 1, NUM_STEPS)
    return counted


def count_training(device: torch.device, preset: str = "demo", base: str | None = None) -> Operators:
    """The operators of one step of `train`, the second of a run."""
    whole = read_preset(preset, base)
    trainer = _trainer(whole, device)
    size = whole.train.batch_size
    image = torch.rand(size, 3, *[whole.prepare.train_px] * 2).to(device)
    trainer.train_step(image, torch.arange(size), 0, 0, NUM_STEPS)
    with Operators() as counted:
        trainer.train_step(image, torch.arange(size), 0, 1, NUM_STEPS)
    return counted


def _trainer(whole: Params, device: torch.device) -> Trainer:
    """A trainer within an epoch, with random clusters."""
    trainer = random_trainer(whole, whole.train.batch_size, device)
    shape = (2, whole.pixel_k, whole.train.fpn_dim)
    trainer._clusters = [
        ViewClusters(one, torch.ones(len(one), device=device)) for one in torch.rand(shape).to(device)
    ]
    return trainer


def measure(device: torch.device, turns: int, *, compiled: bool = False) -> Iterator[Line]:
    """Calls of a step, at the demo's settings; the same on every machine."""
    with on_meta():
        counts = {f"pretraining {name}": count_pretraining(META, **one) for name, one in PRETRAINING.items()}
        counts["training"] = count_training(META)
    for name, counted in counts.items():
        copies = f"{len(counted.copies)} copies to the GPU"
        yield Line(f"operator calls of a step, demo, {name}", f"{counted.total:,}", copies)
