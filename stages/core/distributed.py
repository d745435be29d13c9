"""Helpers for training with one or several processes (torchrun).

Under torchrun, each process works on its share of every batch, and batch-wide quantities are gathered or
summed. Without torchrun, every function behaves as rank 0 of 1.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stages.core.launched import is_launched
from stages.settings.errors import UserError

Item = TypeVar("Item")


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
    if not is_launched() or dist.is_initialized():
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
    # NCCL takes the GPU for its barriers from here; else it guesses.
    backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds), device_id=own)
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


def check_batch(section: str, batch_size: int, micro_batch: int) -> None:
    """Check that a batch can be split over the processes, and each share into passes.

    Args:
        section: of params.yaml.
        batch_size: images of the whole batch.
        micro_batch: images of a pass of one process; 0 for all.

    Raises:
        UserError: it cannot.
    """
    if batch_size % world_size():
        raise UserError(
            f"params.yaml: {section}.batch_size: {batch_size} images cannot be split evenly over "
            f"{world_size()} processes; use a multiple of the number of processes"
        )
    if micro_batch and (batch_size // world_size()) % micro_batch:
        raise UserError(
            f"params.yaml: {section}.micro_batch: the {batch_size // world_size()} images of each of "
            f"{world_size()} processes cannot be cut into passes of {micro_batch}; use a divisor, or 0"
        )


def share(batch: Tensor, dim: int = 0) -> Tensor:
    """This process's part of a whole batch along `dim`; shares are consecutive, in order of rank."""
    return batch.tensor_split(world_size(), dim)[rank()]


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


def objects(value: Any) -> list[Any]:
    """The value of each process, in order of rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def in_turn(items: Sequence[Item]) -> list[Item]:
    """This process's items if the processes take them in turn: r, r + W, r + 2 W, ..."""
    return list(items[rank() :: world_size()])


def to_leader(part: Float[Tensor, "n ..."], sizes: Sequence[int]) -> list[Tensor]:
    """Gather on rank 0 the parts of the first processes, on the CPU, in order of rank.

    Args:
        part: rows of this process; none if `sizes` ends before its rank.
        sizes: number of rows of each part.

    Returns:
        The parts; in other processes none.
    """
    if world_size() == 1:
        return [part.cpu()]
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    sent = torch.zeros(max(sizes), *part.shape[1:], dtype=part.dtype, device=device)
    sent[: len(part)] = part
    parts = [torch.empty_like(sent) for _ in range(world_size())] if is_leader() else None
    dist.gather(sent, parts, dst=0)
    return [] if parts is None else [one[:size].cpu() for one, size in zip(parts, sizes, strict=False)]


def loss_factor(part: Tensor, whole: Tensor) -> Tensor:
    """Factor by which to multiply a mean, so that the mean over processes of the sums is the global mean.

    Args:
        part: number (or total weight) of the items in the mean.
        whole: of all passes of this process.
    """
    return part * world_size() / total(whole)


def replicate(module: nn.Module) -> nn.Module:
    """Let the backward pass of a module average the gradients over processes while it goes on.

    The module is called once for each backward pass. Parameters that no process uses keep no gradient.
    """
    if world_size() == 1:
        return module
    replicated = DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True)
    replicated.broadcast_buffers = False  # the argument has another name in each version of torch
    return replicated


def passes(num_images: int, micro_batch: int) -> list[slice]:
    """Rows of this process's share for each pass; `micro_batch` of 0: one pass."""
    size = micro_batch or num_images
    return [slice(start, start + size) for start in range(0, num_images, size)]


def num_passes(batch_size: int, micro_batch: int) -> int:
    """Number of passes of each process for a batch of all of them."""
    return len(passes(batch_size // world_size(), micro_batch))


def gradients_of(module: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Context of one pass of a replicated module: the last one averages the gradients of all passes."""
    if is_last or not isinstance(module, DistributedDataParallel):
        return contextlib.nullcontext()
    return module.no_sync()


@torch.no_grad()
def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor in place by its mean over processes, with a single all-reduce."""
    tensors = list(tensors)
    if world_size() == 1 or not tensors:  # a ViT has no batch norm
        return
    flat = mean(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, averaged in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(averaged.view_as(tensor))
