"""What stands above a table of measurements, so that it can be pasted as it is."""

import platform
from collections.abc import Iterator

import psutil
import torch

from stages.runtime.environment import describe_environment
from stages.runtime.pool import count_cores


def machine(device: torch.device) -> Iterator[str]:
    """Two lines: the machine; the versions."""
    about = describe_environment(device)
    gpu = ""
    if device.type == "cuda":
        gpu = f", {torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB"
    yield (
        f"Machine: {about['device']}{gpu}; {count_cores()} CPU cores, {memory_bytes() / 1e9:.0f} GB of "
        f"memory, torch uses {about['threads']} threads; {platform.system()} {platform.machine()}."
    )
    packages = (f"{name} {about[name]}" for name in ("python", "torch", "torchvision", "faiss", "numpy"))
    yield f"Versions: {', '.join(packages)}."


def memory_bytes() -> int:
    """Memory of the host."""
    return int(psutil.virtual_memory().total)
