"""What the log says of a device."""

import torch


def describe_device(device: torch.device) -> str:
    """Name of a GPU, or number of threads of a CPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"
