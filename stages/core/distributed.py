"""One process or several on the same work: everything that differs between the two is in here.

Under torchrun each process takes its share of every batch, and what a batch decides together is
gathered or summed; alone, each function answers as rank 0 of 1.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx

from stages.settings.errors import UserError


def join(device: torch.device) -> torch.device:
    """Meet the other processes of torchrun, where there are any.

    Returns:
        The device of this one: each takes the GPU of its own number.

    Raises:
        UserError: there are more processes than GPUs, or one GPU is asked for by all.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return device
    if device.type == "cuda":
        index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if device.index is not None or index >= count:
            raise UserError(
                f"params.yaml: device: {device} has no GPU for process {index + 1}; this machine has "
                f"{count} GPU(s); set device: auto and start at most one process per GPU"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    """Wait for the others, then part from them."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_leader() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def check_batch(key: str, batch_size: int) -> None:
    """Hold a batch size against the number of processes.

    Raises:
        UserError: it cannot be shared evenly.
    """
    if batch_size % world_size():
        raise UserError(
            f"params.yaml: {key}: {batch_size} images cannot be split evenly over {world_size()} processes; "
            "use a multiple of the number of processes"
        )


def share(batch: Tensor) -> Tensor:
    """The rows of a whole batch that are this process's; the shares follow each other by rank."""
    return batch.tensor_split(world_size())[rank()]


@torch.no_grad()
def gather(part: Float[Tensor, "n ..."]) -> Float[Tensor, "N ..."]:
    """The whole batch from equal shares, without gradient."""
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def assemble(part: Tensor, count: int) -> Tensor:
    """The whole batch of `count` rows from shares that may differ in size, without gradient."""
    if world_size() == 1:
        return part
    whole = part.new_zeros(count, *part.shape[1:])
    whole[share(torch.arange(count))] = part
    return total(whole)


@torch.no_grad()
def total(part: Tensor) -> Tensor:
    """The sum over processes, without gradient."""
    if world_size() > 1:
        part = part.clone()
        dist.all_reduce(part)
    return part


def mean(part: Tensor) -> Tensor:
    """The mean over processes, without gradient."""
    return total(part) / world_size()


def from_leader(part: Tensor) -> Tensor:
    """The leader's tensor, whatever the others have."""
    return total(part if is_leader() else torch.zeros_like(part))


def share_of(part: Tensor) -> Tensor:
    """What turns this process's mean into its part of the mean over all: `part` of them all, times processes.

    Args:
        part: number or weight of what this process's mean is over.
    """
    return part * world_size() / total(part)


def total_with_gradient(part: Tensor) -> Tensor:
    """The sum over processes; the gradients of all flow back to each."""
    return _Total.apply(part)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor) -> Tensor:
        return total(part)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        return total(gradients[0])


@torch.no_grad()
def average_(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its mean over processes, in place; one message for all of them."""
    if world_size() == 1:
        return
    tensors = list(tensors)
    flat = mean(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, averaged in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(averaged.view_as(tensor))
