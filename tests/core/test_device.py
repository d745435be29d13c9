"""What is asked of a GPU, on a machine that has none: torch's answers are replaced."""

import contextlib
from typing import Any

import pytest
import torch
from torch.distributed import DistBackendError

from stages.core import distributed
from stages.core.device import choose_device, compile_networks, set_numerics
from stages.core.memory import StepMemory, memory_for, unused_bytes
from stages.core.optimizer_state import restore_optimizer
from stages.settings.errors import UserError

GPU = torch.device("cuda", 1)
GB = 10**9


def _memory(patch: pytest.MonkeyPatch, *, free: int, kept: int, used: int) -> None:
    """Bytes that are free, that torch keeps, and of these those that tensors use."""
    patch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GB))
    patch.setattr(torch.cuda, "memory_reserved", lambda device: kept)
    patch.setattr(torch.cuda, "memory_allocated", lambda device: used)


def test_what_torch_keeps_without_use_is_there_to_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    _memory(monkeypatch, free=10 * GB, kept=30 * GB, used=4 * GB)
    assert unused_bytes(GPU) == 36 * GB


@pytest.mark.parametrize(
    ("between", "free", "fault"),
    [
        (10, 15, None),
        (10, 10, r"with its memory 50\.0 GB are needed, and 45\.0 are left"),
        (35, 15, r"with its memory 55\.0 GB are needed, and 50\.0 are left"),
    ],
)
def test_a_graph_is_refused_where_it_and_what_runs_beside_it_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, between: int, free: int, fault: str | None
) -> None:
    """Steps take 20 and 12 GB beside what stays, and the work before the first `between`; later work any."""
    _memory(monkeypatch, free=free * GB, kept=40 * GB, used=5 * GB)
    peak = [0]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(0, 5 * GB))
    memory = StepMemory(GPU)
    for before, step in ((between, 20), (70, 12)):
        peak[0] = (5 + before) * GB
        with memory.measured():
            assert peak[0] == 5 * GB
            peak[0] = (5 + step) * GB
    with contextlib.nullcontext() if fault is None else pytest.raises(RuntimeError, match=fault):
        memory.require()


@pytest.mark.parametrize(
    ("fault", "has_run_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might ..."), True),
        (DistBackendError("NCCL error in: a.cpp:1\nFailed to CUDA calloc 8 bytes: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_memory_runs_out_in_the_words_of_torch_and_its_libraries(
    fault: RuntimeError, has_run_out: bool
) -> None:
    with pytest.raises(UserError if has_run_out else RuntimeError) as raised, memory_for("lower it"):
        raise fault
    if has_run_out:
        reason = str(fault).partition("\n")[0].partition(". ")[0]
        assert str(raised.value) == f"the memory of the GPU ran out ({reason}); lower it"


def test_products_of_matrices_keep_float32_where_a_container_turns_that_off() -> None:
    try:
        torch.backends.cuda.matmul.allow_tf32 = True  # as by TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1
        set_numerics("tf32", deterministic=True)
        assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        set_numerics("float32", deterministic=True)


def test_all_blocks_of_networks_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a part of its own where batch norm spans processes, because that is left as it is."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        compiled.append(graph)
        return graph

    class Block(torch.nn.Module):
        """Two parts, unlike those of other blocks, between which is what is never compiled."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        @torch.compiler.disable
        def between(self, values: torch.Tensor) -> torch.Tensor:
            return values + 1

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.between(values * self.number) * self.number

    compile_as_usual = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda network, **how: compile_as_usual(network, backend=backend, **how)
    )
    torch.compiler.reset()
    networks = [torch.nn.Sequential(*(Block(first + i) for i in range(16))) for first in (1, 17)]
    compile_networks(networks)
    for network in networks:
        network(torch.ones(1))
    assert len(compiled) == 2 * 2 * 16


@pytest.mark.parametrize(("name", "current"), [("cuda:1", [GPU]), ("cuda", []), ("auto", [])])
def test_a_gpu_with_a_number_becomes_the_current_one(
    monkeypatch: pytest.MonkeyPatch, name: str, current: list[torch.device]
) -> None:
    """Triton starts its kernels on the current GPU, even if their tensors are on another."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "one of two")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    choose_device(name)
    assert chosen == current
    for source, remedy in (("params.yaml: device", "set device:"), ("--device", "pass --device")):
        with pytest.raises(UserError) as raised:
            choose_device("cuda:2", source)
        assert str(raised.value) == (
            f"{source}: 'cuda:2', but only 2 GPU(s) are visible; {remedy} cuda, or an index below 2"
        )


@pytest.mark.parametrize(
    ("name", "source", "remedy"),
    [("cuda", "params.yaml: device", "set device: auto"), ("cuda:0", "--device", "pass --device auto")],
)
def test_a_gpu_that_is_asked_for_and_absent_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, source: str, remedy: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as raised:
        choose_device(name, source)
    assert str(raised.value) == (
        f"{source}: {name!r} needs a CUDA GPU, but torch {torch.__version__} finds none; {remedy} or cpu, "
        "or install the GPU driver"
    )


@pytest.mark.parametrize(
    ("device", "expected"), [(GPU, ("nccl", torch.device("cuda", 0))), (torch.device("cpu"), ("gloo", None))]
)
def test_the_process_group_knows_its_gpu(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, expected: tuple[str, torch.device | None]
) -> None:
    """NCCL's barriers would guess it otherwise."""
    asked: list[tuple[str, torch.device | None]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda backend, timeout, device_id: asked.append((backend, device_id)),
    )
    distributed.join(torch.device(device.type), 60.0)
    assert asked == [expected]


@pytest.mark.parametrize(
    ("then", "now"), [({"foreach": True}, {"fused": True, "capturable": True}), ({"fused": True}, {})]
)
def test_an_optimizer_goes_on_in_its_own_way_of_computing(
    then: dict[str, bool], now: dict[str, bool]
) -> None:
    """The state may be of a run without CUDA graphs, whose steps no graph can hold."""
    saved, own = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    before = torch.optim.Adam([saved], lr=0.5, **then)
    saved.grad = torch.ones(3)
    before.step()
    after = torch.optim.Adam([own], lr=0.25, **now)
    ways = {key: after.param_groups[0][key] for key in ("capturable", "fused", "foreach")}
    restore_optimizer(after, before.state_dict())
    (group,) = after.param_groups
    assert {key: group[key] for key in ways} == ways
    assert group["lr"] == 0.5
    for name in ("exp_avg", "step"):
        assert after.state[own][name].tolist() == before.state[saved][name].tolist()
