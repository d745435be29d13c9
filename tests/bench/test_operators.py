"""A step of training asks nothing of the device that the host would have to wait for.

On the meta device, the test sees: values read by the host (`item`, `bool`, `tolist`, a CUDA copy to the
host), operators whose result has as many elements as the data say (`nonzero`, masks as indices, `unique`,
`bincount`), and every tensor that goes from the host to the device. It cannot see whether a copy is
asynchronous (only that `send` makes it, which pins memory), whether a kernel exists for a GPU or is
deterministic, work that a CUDA kernel does on the host by itself, nor differences between autocast and
float32, because autocast does not know this device.
"""

from typing import Any

import pytest
import torch

from stages.core.transfer import send, send_all
from tests.bench.operators import (
    META,
    PRETRAINING,
    Operators,
    count_pretraining,
    count_training,
    measure,
    on_meta,
)
from tests.datasets import read_preset

# Most calls of a step: on the CPU and, where the gradient of interpolation is matrix products and pairs of
# clusters are counted without `bincount`, on a GPU.
MOST = {
    "mocov2": (625, 640),
    "mocov2, symmetric": (1070, 1085),
    "swav": (625, 635),
    "densecl": (775, 800),
    "slotcon": (2275, 2290),
    "train": (1900, 2040),
}


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_step_of_pretraining_runs_without_the_host(name: str) -> None:
    with on_meta():
        counted = count_pretraining(META, **PRETRAINING[name])
    assert counted.copies == ["send"]
    assert counted.total <= MOST[name][1]


def test_swav_with_small_views_and_a_queue_needs_no_copy_more() -> None:
    changes = {"local_crops": 2, "queue_size": 32, "queue_from_epoch": 0}
    own = read_preset("demo").pretrain.swav.model_copy(update=changes)
    with on_meta():
        counted = count_pretraining(META, **PRETRAINING["swav"], swav=own)
    assert counted.copies == ["send"]


@pytest.mark.parametrize("base", [None, "ours"])
def test_a_step_of_training_runs_without_the_host(base: str | None) -> None:
    """With guidance, context and the figures of health, as the demo has them."""
    with on_meta():
        counted = count_training(META, base=base)
    assert counted.copies == ["send"]
    assert counted.total <= MOST["train"][1]


def test_a_step_of_a_vit_at_another_size_than_its_positions_needs_no_copy_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = read_preset("demo")
    vit = {"arch": "vit_small", "width": 4, "patch_px": 8}
    backbone = whole.backbone.model_copy(update=vit)
    own = whole.model_copy(update={"backbone": backbone})
    monkeypatch.setattr("tests.bench.operators.read_preset", lambda *_: own)
    with on_meta():
        counted = count_pretraining(META)
    assert counted.copies == ["send"]


@pytest.mark.parametrize("name", [*PRETRAINING, "train"])
def test_a_step_makes_few_calls_on_the_cpu(name: str) -> None:
    cpu = torch.device("cpu")
    counted = count_training(cpu) if name == "train" else count_pretraining(cpu, **PRETRAINING[name])
    assert MOST[name][0] / 2 < counted.total <= MOST[name][0]


WAITING: dict[str, Any] = {
    "item": lambda one: one.sum().item(),
    "truth": lambda one: bool(one.sum() > 0),
    "nonzero": torch.nonzero,
    "mask": lambda one: one[one > 0],
    "masked_select": lambda one: one.masked_select(one > 0),
    "unique": torch.unique,
    "equal": lambda one: torch.equal(one, one + 1),
    "bincount": lambda one: torch.bincount(one.long().flatten()),
    "repeat": lambda one: torch.repeat_interleave(one, one.long()),
    "to_host": lambda one: one.cpu(),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_the_host_would_wait_for_is_refused(name: str) -> None:
    with on_meta(), Operators(), pytest.raises((RuntimeError, NotImplementedError)):
        WAITING[name](torch.empty(4, device=META))


def test_host_tensors_in_the_work_of_the_device_are_refused() -> None:
    with Operators(), pytest.raises(AssertionError, match="mul mixes host and device"):
        torch.empty(4, device=META) * torch.tensor(2.0)


def test_calls_and_copies_are_counted_with_the_backward_pass() -> None:
    weight = torch.ones(3, requires_grad=True)
    with Operators() as counted:
        (weight * 2).sum().backward()
    assert {"mul": 2, "sum": 1}.items() <= counted.calls.items()
    with Operators() as counted:
        send(torch.ones(3), META)
    assert counted.copies == ["send"]


def test_parts_arrive_in_one_copy_with_their_shapes_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [torch.tensor([True, False, True]), torch.arange(5), torch.rand(2, 3), torch.ones(()).double()]
    with Operators() as counted:
        sent = send_all(parts, META)
    assert counted.copies == ["send"]
    assert [(one.shape, one.dtype) for one in sent] == [(one.shape, one.dtype) for one in parts]
    # What a GPU would hold, by a device that keeps the bytes on the host.
    monkeypatch.setattr("stages.core.transfer.send", lambda values, device: values.clone())
    assert all(torch.equal(*pair) for pair in zip(send_all(parts, META), parts, strict=True))


def test_the_counts_are_figures_of_the_bench() -> None:
    lines = list(measure(torch.device("cpu"), 1))
    names = [*(f"pretraining {name}" for name in PRETRAINING), "training"]
    assert [line.what for line in lines] == [f"operator calls of a step, demo, {name}" for name in names]
    assert all(int(line.here.replace(",", "")) > 100 for line in lines)
    assert all(line.beside.endswith("copies to the GPU") for line in lines)
