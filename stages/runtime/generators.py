"""Random numbers of torch, by the same rule as all others."""

import torch

from stages.runtime.seeds import derive


def torch_generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator for one purpose; draws are moved to the device, so every device sees the same."""
    return torch.Generator().manual_seed(derive(seed, *path))
