"""A step of training in two halves: what the host draws, and what the device computes and leaves."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import KeyPath, tree_leaves_with_path

from stages.core.transfer import send_all

# Tolerance of `difference`.
NOISE = 10.0  # this many times the distance of two runs of the same step
ROUNDING = 1e-3  # plus this share of the change that the step makes


class Moment(NamedTuple):
    """When a step is made."""

    epoch: int  # from 0
    step: int  # within the epoch, from 0
    num_steps: int  # of an epoch

    @property
    def epochs(self) -> float:
        """Epochs so far, with a fraction for the steps of this one."""
        return self.epoch + self.step / self.num_steps

    @property
    def steps(self) -> int:
        """Steps of the whole run so far."""
        return self.epoch * self.num_steps + self.step


class Drawn(NamedTuple):
    """All that a step takes from the host.

    The device computes a step from its images and `numbers` alone. No number of the host that changes from
    step to step may enter the computation in another way: a captured step would repeat the old one.
    """

    numbers: tuple[Tensor, ...]  # random, and those that follow a schedule
    phase: tuple[bool, ...] = ()  # what the computation consists of; changes a few times in a run, if at all

    def to(self, device: torch.device) -> "Drawn":
        """The same on the device, in one asynchronous copy."""
        return self._replace(numbers=tuple(send_all(self.numbers, device)))

    def after(self, *numbers: Tensor) -> "Drawn":
        """The same behind other numbers."""
        return self._replace(numbers=(*numbers, *self.numbers))

    def without(self, count: int) -> "Drawn":
        """The same without the first `count` numbers."""
        return self._replace(numbers=self.numbers[count:])


Copied = dict[KeyPath, Tensor]  # the tensors of a state, by their place in it


def tensors_of(state: Any) -> Iterator[tuple[KeyPath, Tensor]]:
    """All tensors of nested dicts and lists, with their places."""
    return ((place, value) for place, value in tree_leaves_with_path(state) if isinstance(value, Tensor))


def copied(state: Any) -> Copied:
    """Copy all tensors of a state."""
    return {place: value.detach().clone() for place, value in tensors_of(state)}


@torch.no_grad()
def restore(state: Any, before: Copied) -> None:
    """Give the tensors of a state their values back.

    Those that a step has added since, as optimizers do at their first, become 0, where optimizers begin.
    """
    for place, value in tensors_of(state):
        value.copy_(before[place]) if place in before else value.zero_()


class Left(NamedTuple):
    """What a step leaves."""

    state: Copied
    figures: Tensor


def difference(before: Iterable[Tensor], steps: Sequence[Left], other: Left) -> str:
    """What is wrong with what a step leaves that was made in another way; empty if nothing is.

    Args:
        before: the state before the step.
        steps: what the step leaves, made twice as it is.
        other: what it leaves in the other way: anything where the step leaves what is not a number.
    """
    once, again, found = ([*left.state.values(), left.figures] for left in (*steps, other))
    starts = [*before, torch.zeros_like(other.figures)]
    wrong = 0
    for tensors in zip(starts, once, again, found, strict=True):
        start, one, second, made = (tensor.double() for tensor in tensors)
        moved = (one - start).norm()
        allowed = NOISE * (one - second).norm() + ROUNDING * moved
        wrong += not ((made - one).norm() <= allowed or moved.isnan())
    return f"{wrong} of {len(found)} tensors differ" if wrong else ""
