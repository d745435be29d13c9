"""Description of the environment of a result: package versions, device and threads."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = {  # package -> distributions that may provide it
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "faiss": ("faiss-gpu", "faiss-cpu"),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
}
CPU_INFO = Path("/proc/cpuinfo")


def describe_environment(device: torch.device | None = None) -> dict[str, str | int | bool]:
    """Describe what can affect a result besides code, settings and data; equal for clones on one machine.

    Args:
        device: device of the networks. Without it, what was computed without networks: on the CPU, with
            neither `tf32` nor `deterministic`.
    """
    about: dict[str, str | int | bool] = {
        "python": platform.python_version(),
        **{name: _version(*distributions) for name, distributions in PACKAGES.items()},
        "device": _name(device or torch.device("cpu")),
        "threads": torch.get_num_threads(),
    }
    if device is not None:
        about["tf32"] = torch.backends.cudnn.allow_tf32
        about["deterministic"] = torch.are_deterministic_algorithms_enabled()
    return about


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "absent"


def _name(device: torch.device) -> str:
    """Return the GPU or CPU model, because rounding differs between models."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"cpu: {models[0] if models else platform.processor() or platform.machine()}"
