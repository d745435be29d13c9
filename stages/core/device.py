"""Choice of the device, its numerical precision, and the random numbers that are drawn for it."""

import ctypes
import os
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from stages.core.seeds import derive
from stages.settings.errors import UserError

Module = TypeVar("Module", bound=torch.nn.Module)


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
