"""The state of an optimizer, as it comes back from a file."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Options of optimizers that change no result but by rounding.
HOW_COMPUTED = ("capturable", "foreach", "fused")


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
