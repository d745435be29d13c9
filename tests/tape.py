"""A CUDA graph without a GPU: records every call of an operator in a step, and makes the calls again.

As a graph does with kernels, it repeats the calls on the memory of the recorded step: each takes the tensors
that it took, and its results go where the recorded ones lie. Whatever a step took from the host in another
way than through its input tensors stays as it was when the step was recorded.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.core.graph import Compute
from stages.core.step import Drawn

PROFILING = ("_record_function_enter_new", "_record_function_exit")


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor)]


class Recording(TorchDispatchMode):
    """The calls of one step, in order, with the tensors that they took and gave."""

    def __init__(self) -> None:
        super().__init__()
        # Each with the places of the results that are new tensors, neither views nor changed in place.
        self._calls: list[tuple[Any, Any, Any, list[Tensor], list[int]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make one call and note it."""
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in PROFILING:
            return result
        results = _tensors(result)
        taken = {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs))}
        new = [i for i, one in enumerate(results) if one.untyped_storage().data_ptr() not in taken]
        if new or function._schema.is_mutable:
            self._calls.append((function, args, kwargs or {}, results, new))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Make all calls again; new tensors are copied to where the recorded ones lie."""
        for function, args, kwargs, results, new in self._calls:
            found = function(*args, **kwargs)
            if new:
                found = _tensors(found)
                for i in new:
                    results[i].copy_(found[i])


class Tape:
    """Makes and records steps for `Graphs`, as `CudaRecorder` does on a GPU; what it records, it also makes.

    Args:
        compute: the step.

    Attributes:
        num_records: number of recorded steps.
        num_replays: number of replayed steps.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self.num_records = self.num_replays = 0

    def make(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Make a step."""
        return self._compute(image, drawn)

    def record(self, image: Tensor, drawn: Drawn) -> Compute:
        """Record a step."""
        self.num_records += 1
        own_image, own = image.clone(), drawn._replace(numbers=tuple(part.clone() for part in drawn.numbers))
        with Recording() as recording:
            figures = self._compute(own_image, own).detach()

        def repeat(image: Tensor, drawn: Drawn) -> Tensor:
            own_image.copy_(image)
            for part, value in zip(own.numbers, drawn.numbers, strict=True):
                part.copy_(value)
            recording.replay()
            self.num_replays += 1
            return figures.clone()

        return repeat
