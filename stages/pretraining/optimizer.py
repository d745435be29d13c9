"""Optimizers and learning-rate schedule; includes LARS (You et al., 2017), which torch lacks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.settings.schema_pretrain import Pretrain

TRUST = 0.001  # as in SwAV and the LARS paper


class SGD(torch.optim.Optimizer):
    """SGD with momentum, whose learning rate may be a tensor on the device.

    v <- momentum v + g + decay w, then w <- w - lr v

    The values of torch's own. That one reads such a learning rate back to the host, or, fused, cannot begin
    with some weights of a group later than with others, as SwAV does with its prototypes.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, self._slopes(weights, group))
            torch._foreach_sub_(weights, torch._foreach_mul(velocities, group["lr"]))

    def _slopes(self, weights: Sequence[Tensor], group: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The gradient of each weight, with weight decay."""
        slopes = [weight.grad for weight in weights if weight.grad is not None]
        return torch._foreach_add(slopes, list(weights), alpha=group["weight_decay"])


class LARS(SGD):
    """SGD that scales the gradient of each weight tensor to `TRUST` times the weight norm.

    g <- TRUST |w| / (|g| + decay |w|) (g + decay w)

    A parameter group with `adapts=False` takes plain SGD.
    """

    def _slopes(self, weights: Sequence[Tensor], group: Mapping[str, Any]) -> tuple[Tensor, ...]:
        if not group.get("adapts", True):
            return super()._slopes(weights, group)
        decay = group["weight_decay"]
        return tuple(scaled(weight, weight.grad, decay) for weight in weights if weight.grad is not None)


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


def build_optimizer(
    settings: Pretrain, parameters: Sequence[Tensor], *, is_capturable: bool = False
) -> torch.optim.Optimizer:
    """Build the optimizer; weight decay applies only to weights, not to biases and batch norms (ours).

    With SlotCon, LARS does not scale the gradients of biases and batch norms, like its official code; with
    the other methods, such as SwAV, it scales all.

    AdamW is fused, because the plain version takes a tenth of the step time of a small network on a CPU. A
    CUDA graph can hold its step only if it `is_capturable`; the others always are.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return SGD(groups, lr=settings.lr, momentum=settings.momentum)
    if settings.optimizer == "lars":
        groups[1]["adapts"] = settings.method != "slotcon"
        return LARS(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True, capturable=is_capturable)
