"""Device selection and numerical precision."""

import ctypes
import functools
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from stages.core.seeds import derive
from stages.settings.errors import UserError

Module = TypeVar("Module", bound=torch.nn.Module)

# Options of optimizers that change no result but by rounding.
HOW_COMPUTED = ("capturable", "foreach", "fused")

# Parts of networks with the same code that are compiled: where batch norm spans processes, each residual
# block is one, and a second network has as many again. torch's limit of 8 would leave most as they are.
MOST_PARTS = 64

# Constants of malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def choose_device(
    name: str, source: str = "params.yaml: device", *, keeps_memory: bool = True
) -> torch.device:
    """The device of a name: auto, cpu, cuda or cuda:<index>.

    Also selects plain float32 and deterministic algorithms; see `set_numerics`.

    Args:
        name: the name.
        source: the setting or flag that gave it, for messages.
        keeps_memory: see `keep_freed_memory`, for a CPU.

    Raises:
        UserError: CUDA is requested but not available; there is no silent fallback to the CPU.
    """
    available = torch.cuda.is_available()
    if name.startswith("cuda") and not available:
        raise UserError(
            f"{source}: {name!r} needs a CUDA GPU, but torch {torch.__version__} finds none; "
            f"{_choice(source)} auto or cpu, or install the GPU driver"
        )
    device = torch.device("cuda" if name == "auto" and available else "cpu" if name == "auto" else name)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if device.index is not None:
            if device.index >= (count := torch.cuda.device_count()):
                raise UserError(
                    f"{source}: {name!r}, but only {count} GPU(s) are visible; {_choice(source)} cuda, or an "
                    f"index below {count}"
                )
            torch.cuda.set_device(device)  # Triton starts kernels on the current one, whatever they read
    if device.type == "cpu":
        if keeps_memory:
            keep_freed_memory()
        torch.set_flush_denormal(True)  # denormals in Gaussian tails are about 100 times slower
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs 6 % of a small step
    set_numerics("float32", deterministic=True)
    return device


def _choice(source: str) -> str:
    return f"pass {source}" if source.startswith("--") else "set device:"


def set_numerics(precision: str, *, deterministic: bool) -> None:
    """Select the arithmetic of convolutions and the algorithms of a GPU, for this process.

    Args:
        precision: with `tf32`, a GPU rounds the inputs of float32 convolutions to 10 bits of mantissa. Matrix
            products, and with them losses, clustering and attention, keep float32.
        deterministic: use algorithms that repeat their bytes, where torch has them (it warns where it has
            none). Otherwise cuDNN also tries several algorithms at each new shape and keeps the fastest.
    """
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # Off by default, but containers turn it on by TORCH_ALLOW_TF32_CUBLAS_OVERRIDE.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def place(module: Module, device: torch.device) -> Module:
    """Move a network to its device, in channels-last memory format."""
    return module.to(device).to(memory_format=torch.channels_last)


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load an optimizer state, with each running mean in the memory format of its parameter.

    Files do not store memory formats, and the fused optimizers require parameters and running means to have
    the same format. A learning rate that is a tensor stays the tensor that it is. So do the options that say
    how steps are computed: the state may be of another device, or of a run without CUDA graphs.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    how = [{key: group[key] for key in HOW_COMPUTED if key in group} for group in optimizer.param_groups]
    groups = [{**group, **own} for group, own in zip(saved["param_groups"], how, strict=True)]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):
            group["lr"] = rate.copy_(group["lr"])
    for parameter, means in optimizer.state.items():
        for name, value in means.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                means[name] = torch.empty_like(parameter.detach(), dtype=value.dtype).copy_(value)


def compile_networks(networks: Iterable[torch.nn.Module]) -> None:
    """Enable torch.compile for the networks; it compiles at the first input of each size.

    Raises:
        UserError: no C++ compiler was found.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"params.yaml: compile: true needs a C++ compiler, but {compiler} was not found; install "
            "one, set the environment variable CXX to yours, or set compile: false"
        )
    torch._dynamo.config.recompile_limit = MOST_PARTS
    for network in networks:
        network.compile(dynamic=False)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to another device asynchronously."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def send_all(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy several CPU tensors to another device in one asynchronous copy; shapes and types stay."""
    return list(parts) if device.type == "cpu" else unpack(send(pack(parts), device), parts)


def pack(parts: Sequence[Tensor]) -> UInt8[Tensor, " B"]:
    """The bytes of several CPU tensors in one; numpy's copy starts no operators."""
    stored = [parts[place].numpy().tobytes() for place in _by_element_size(parts)]
    return torch.frombuffer(bytearray().join(stored), dtype=torch.uint8)


def unpack(packed: UInt8[Tensor, " B"], like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the tensors that `pack` packed; `like` has their shapes and types."""
    order = _by_element_size(like)
    pieces = packed.split([like[place].nbytes for place in order])
    found = dict(zip(order, pieces, strict=True))
    return [found[place].view(part.dtype).view(part.shape) for place, part in enumerate(like)]


def _by_element_size(parts: Sequence[Tensor]) -> list[int]:
    """The largest elements first, so that each part begins at a multiple of its element size."""
    return sorted(range(len(parts)), key=lambda place: -parts[place].element_size())


@functools.cache
def constant(
    values: tuple[float | tuple[float, ...], ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """A small constant on a device; cached, so it is copied only once."""
    return torch.tensor(values, dtype=dtype, device=device)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Autocast context for forward passes in `precision`; losses stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the kernel.

    By default, glibc maps new pages for every large activation, and each page causes a page fault. In
    training steps of ResNet-18 at 128 px (batch sizes 8 and 32, one thread), this took 6 to 13 % of the CPU
    time; with this setting it takes 1 %. Does nothing if the C library has no `mallopt`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 2**26)


def torch_generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator for one purpose; draws are moved to the device, so every device sees the same."""
    return torch.Generator().manual_seed(derive(seed, *path))
