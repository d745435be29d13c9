"""Steps of training on the device, one call of an operator after another, or as CUDA graphs.

At small sizes the host needs longer to start the kernels of a step than a GPU to run them. A graph holds
them all, so the host starts a step with one call (https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from stages.core import distributed
from stages.core.device import pack, unpack
from stages.core.step import Drawn
from stages.settings.errors import UserError

Compute = Callable[[Tensor, Drawn], Tensor]  # images and what was drawn, on the device; figures of the step
Kind = tuple[tuple[bool, ...], tuple[torch.Size, ...]]  # phase, and the shapes of what was drawn
WARM_UP = 2  # steps of a kind before it is captured: libraries choose algorithms, optimizers make their state
MOST_GRAPHS = 64  # kinds that are captured; others run as they are, for each graph takes memory


def run_steps(compute: Compute, device: torch.device, *, is_captured: bool) -> Compute:
    """A function that takes images on the device and what the host drew, and makes the step.

    Args:
        compute: the step on the device. All state that it leaves for the next one it changes in place.
        device: where it runs.
        is_captured: whether as CUDA graphs (`runtime.cuda_graph`).

    Raises:
        UserError: CUDA graphs are asked for without a GPU, or with several processes.
    """
    if not is_captured:
        return lambda image, drawn: compute(image, drawn.to(device))
    if device.type != "cuda":
        raise UserError(
            f"params.yaml: runtime.cuda_graph: true needs a GPU, but the device is {device}; set "
            "runtime.cuda_graph: false"
        )
    if distributed.world_size() > 1:
        raise UserError(
            f"params.yaml: runtime.cuda_graph: true needs one process, but there are "
            f"{distributed.world_size()}; set runtime.cuda_graph: false, or start one process"
        )
    return Graphs(compute, device)


class Graphs:
    """Steps as CUDA graphs: one for each kind of step, captured at its third time and replayed from then on.

    The first steps of a kind are real ones, made as they are, so nothing has to be undone. Graphs share
    their memory, because no two run at a time, and what outlives a step was made before they were captured.

    Args:
        compute: see `run_steps`.
        device: a GPU.
    """

    def __init__(self, compute: Compute, device: torch.device) -> None:
        self._compute, self._device = compute, device
        self._seen: Counter[Kind] = Counter()
        self._graphs: dict[Kind, _Captured] = {}
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self._image: Tensor | None = None  # from which all graphs read

    def __call__(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Make a step; the result is a new tensor."""
        kind = drawn.phase, tuple(part.shape for part in drawn.numbers)
        if kind not in self._graphs:
            self._seen[kind] += 1
            if self._seen[kind] <= WARM_UP or len(self._graphs) == MOST_GRAPHS:
                return self._as_it_is(image, drawn)
            self._graphs[kind] = self._capture(image, drawn)
        graph = self._graphs[kind]
        assert self._image is not None
        self._image.copy_(image)
        graph.numbers.copy_(pack(drawn.numbers).pin_memory(), non_blocking=True)
        graph.graph.replay()
        return graph.figures.clone()

    def _as_it_is(self, image: Tensor, drawn: Drawn) -> Tensor:
        """On the stream that captures, to which autograd and cuBLAS attach what they keep."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", ".*constructed with capturable=True"
            )  # it soon will be captured
            figures = self._compute(image, drawn.to(self._device))
        current.wait_stream(self._stream)
        return figures

    def _capture(self, image: Tensor, drawn: Drawn) -> "_Captured":
        """Record the kernels of a step without running them."""
        if self._image is None:
            self._image = torch.empty_like(image)
        numbers = pack(drawn.numbers).to(self._device)
        own = drawn._replace(numbers=tuple(unpack(numbers, drawn.numbers)))
        graph = torch.cuda.CUDAGraph()
        # Another thread may pin memory for the next batch meanwhile, so only this one is watched for faults.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            figures = self._compute(self._image, own).detach()
        return _Captured(graph, numbers, figures)


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    numbers: Tensor  # packed; the graph reads them from here
    figures: Tensor
