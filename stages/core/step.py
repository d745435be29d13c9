"""A step of training in two halves: what the host draws, and what the device computes from it."""

from typing import NamedTuple

import torch
from torch import Tensor

from stages.core.device import send_all


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
