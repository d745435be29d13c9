"""Copies of CPU tensors to another device, asynchronous, and several in one."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to another device asynchronously."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def send_all(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy several CPU tensors to another device in one asynchronous copy; shapes and types stay."""
    return list(parts) if device.type == "cpu" else unpack(send(pack(parts), device), parts)


def pack(parts: Sequence[Tensor]) -> UInt8[Tensor, " B"]:
    """The bytes of several CPU tensors in one; numpy's copy starts no operators."""
    stored = [parts[place].numpy().tobytes() for place in _by_element_size(parts)]
    return torch.frombuffer(bytearray().join(stored), dtype=torch.uint8)


def unpack(packed: UInt8[Tensor, " B"], like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the tensors that `pack` packed; `like` has their shapes and types."""
    order = _by_element_size(like)
    pieces = packed.split([like[place].nbytes for place in order])
    found = dict(zip(order, pieces, strict=True))
    return [found[place].view(part.dtype).view(part.shape) for place, part in enumerate(like)]


def _by_element_size(parts: Sequence[Tensor]) -> list[int]:
    """The largest elements first, so that each part begins at a multiple of its element size."""
    return sorted(range(len(parts)), key=lambda place: -parts[place].element_size())


@functools.cache
def constant(
    values: tuple[float | tuple[float, ...], ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """A small constant on a device; cached, so it is copied only once."""
    return torch.tensor(values, dtype=dtype, device=device)
