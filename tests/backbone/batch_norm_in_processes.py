"""A batch norm whose batch is spread over processes, for torchrun: each writes what it got."""

import os
import sys
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from stages.backbone.batch_norm import split_batch_norms
from stages.core import distributed


def normalise(norm: nn.BatchNorm2d, x: torch.Tensor, sent: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients for the gradient `sent` of the output, and running statistics."""
    network = nn.Sequential(norm)
    split_batch_norms(network, 1)
    x = x.clone().requires_grad_()
    out = network(x)
    out.backward(sent)
    (norm,) = network
    gradients = {f"{name}.grad": value.grad for name, value in norm.named_parameters()}
    return {"out": out.detach(), "x": x.grad, **gradients, **norm.state_dict()}


def count_collectives() -> list[str]:
    """The collectives that are called from now on."""
    calls: list[str] = []
    for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast"):
        setattr(dist, name, partial(_counted, calls, name, getattr(dist, name)))
    return calls


def _counted(calls: list[str], name: str, call: Any, *args: Any, **options: Any) -> Any:
    calls.append(name)
    return call(*args, **options)


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    distributed.join(torch.device("cpu"), timeout_seconds=60)
    calls, written = count_collectives(), []
    for case in torch.load(sys.argv[1], weights_only=False):
        calls.clear()
        x, sent = (case[name].split(case["sizes"])[rank] for name in ("x", "sent"))
        found: dict[str, Any] = normalise(case["norm"], x, sent)
        written.append({**found, "collectives": len(calls)})
    torch.save(written, f"{rank}.pt")
    distributed.leave()
