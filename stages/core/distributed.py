"""Helpers for training with one or several processes (torchrun).

Under torchrun, each process works on its share of every batch, and batch-wide quantities are gathered or
summed. Without torchrun, every function behaves as rank 0 of 1.
"""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from stages.settings.errors import UserError


def join(device: torch.device, timeout_seconds: float) -> torch.device:
    """Join the process group if the program runs under torchrun.

    Args:
        device: as chosen for one process.
        timeout_seconds: a process that waits this long for another ends with an error.

    Returns:
        The device of this process: the GPU with its local rank, if GPUs are used.

    Raises:
        UserError: there are more processes than GPUs, or `device` names one GPU for all of them.
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
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    return device


def leave() -> None:
    """Wait for the other processes, then leave the process group."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_leader() -> bool:
    """Whether this process is rank 0, which writes the files."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def check_batch(key: str, batch_size: int) -> None:
    """Check that a batch size is divisible by the number of processes.

    Raises:
        UserError: it is not divisible.
    """
    if batch_size % world_size():
        raise UserError(
            f"params.yaml: {key}: {batch_size} images cannot be split evenly over {world_size()} processes; "
            "use a multiple of the number of processes"
        )


def share(batch: Tensor) -> Tensor:
    """This process's rows of a whole batch; shares are consecutive, in order of rank."""
    return batch.tensor_split(world_size())[rank()]


@torch.no_grad()
def gather(part: Float[Tensor, "n ..."]) -> Float[Tensor, "N ..."]:
    """Gather the whole batch from equally sized shares, without gradient."""
    if world_size() == 1:
        return part
    whole = part.new_empty(world_size() * len(part), *part.shape[1:])
    dist.all_gather_into_tensor(whole, part.contiguous())
    return whole


@torch.no_grad()
def assemble(part: Tensor, count: int) -> Tensor:
    """Gather the whole batch of `count` rows from shares of possibly different sizes, without gradient."""
    if world_size() == 1:
        return part
    whole = part.new_zeros(count, *part.shape[1:])
    whole[share(torch.arange(count))] = part
    return total(whole)


@torch.no_grad()
def total(part: Tensor) -> Tensor:
    """Sum over processes, without gradient."""
    if world_size() > 1:
        part = part.clone()
        dist.all_reduce(part)
    return part


def mean(part: Tensor) -> Tensor:
    """Mean over processes, without gradient."""
    return total(part) / world_size()


def from_leader(part: Tensor) -> Tensor:
    """Broadcast the tensor of rank 0."""
    return total(part if is_leader() else torch.zeros_like(part))


def object_from_leader(value: Any) -> Any:
    """Broadcast any value of rank 0, such as nested dicts of CPU tensors."""
    if world_size() == 1:
        return value
    box = [value if is_leader() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_of(part: Tensor) -> Tensor:
    """Factor by which to multiply this process's mean, so that the mean over processes is the global mean.

    Args:
        part: number (or total weight) of the items in this process's mean.
    """
    return part * world_size() / total(part)


@torch.no_grad()
def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor in place by its mean over processes, with a single all-reduce."""
    if world_size() == 1:
        return
    tensors = list(tensors)
    flat = mean(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, averaged in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(averaged.view_as(tensor))
