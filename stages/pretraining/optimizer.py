"""Optimizers and learning-rate schedule; includes LARS (You et al., 2017), which torch lacks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.settings.schema_pretrain import Pretrain

TRUST = 0.001  # as in SwAV and the LARS paper


class LARS(torch.optim.SGD):
    """SGD that scales the gradient of each weight tensor to `TRUST` times the weight norm.

    g <- TRUST |w| / (|g| + decay |w|) (g + decay w)

    A parameter group with `adapts=False` takes plain SGD.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, lr=lr, momentum=momentum)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of SGD along the scaled gradients."""
        groups = [group for group in self.param_groups if group.get("adapts", True)]
        decays = [group["weight_decay"] for group in groups]
        for group, decay in zip(groups, decays, strict=True):
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.copy_(scaled(weight, weight.grad, decay))
            group["weight_decay"] = 0.0
        super().step()
        for group, decay in zip(groups, decays, strict=True):
            group["weight_decay"] = decay


def scaled(weight: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """The scaled gradient with weight decay; unscaled if weight or gradient is zero."""
    norm, slope = weight.norm(), gradient.norm()
    scale = TRUST * norm / (slope + decay * norm)
    return torch.where((norm > 0) & (slope > 0), scale * (gradient + decay * weight), gradient)


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Factor of the base learning rate at `step`: linear warm-up, then cosine decay to 0.

    Args:
        step: 0 is the first.
        total_steps: number of steps of the whole run.
        warmup_steps: number of warm-up steps; 0 starts at the full rate, as in MoCo v2.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def build_optimizer(settings: Pretrain, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Build the optimizer; weight decay applies only to weights, not to biases and batch norms (ours).

    Nor does LARS scale the gradients of biases and batch norms for SlotCon, as its official code; for SwAV it
    scales all.

    AdamW is fused, because the plain version takes a tenth of the step time of a small network on a CPU. SGD
    is not, because fused SGD cannot start updating prototypes that were frozen before.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    if settings.optimizer == "lars":
        groups[1]["adapts"] = settings.method != "slotcon"
        return LARS(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
