"""Steps of training on the device, one call of an operator after another, or as CUDA graphs.

At small sizes the host needs longer to start the kernels of a step than a GPU to run them. A graph holds
them all, so the host starts a step with one call (https://docs.pytorch.org/docs/stable/notes/cuda.html).
A graph that was recorded wrongly repeats a wrong step in silence, so none is used before it was checked.
"""

import warnings
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from stages.core import distributed
from stages.core.memory import StepMemory, first_line, has_run_out
from stages.core.step import Copied, Drawn, Left, copied, difference, restore, tensors_of
from stages.core.transfer import pack, unpack
from stages.settings.errors import UserError

Compute = Callable[[Tensor, Drawn], Tensor]  # images and what was drawn, on the device; figures of the step
Kind = tuple[tuple[bool, ...], tuple[torch.Size, ...]]  # phase, and the shapes of what was drawn
Wish = Literal["auto"] | bool  # runtime.cuda_graph
WARM_UP = 2  # steps of a kind before it is recorded: libraries choose algorithms, optimizers make their state
MOST_GRAPHS = 64  # kinds that are recorded; others run as they are, for each graph takes memory
MOST_KINDS = 256  # kinds that are counted; where there are more, hardly one is met again
MOST_AHEAD = 3  # steps that wait for a GPU; each holds its batch in pinned memory of the host


class Recorder(Protocol):
    """Makes steps, and records them."""

    def make(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Make a step, one call after another, as the first steps of a kind and where no graph is used."""

    def record(self, image: Tensor, drawn: Drawn) -> Compute:
        """Record a step; return what repeats it with other images and numbers.

        Raises:
            RuntimeError: something in the step cannot be recorded, or memory ran out.
        """


def can_record(wish: Wish, device: torch.device) -> bool:
    """Whether steps are to run as CUDA graphs; `auto`: on a GPU with one process.

    Raises:
        UserError: CUDA graphs are asked for without a GPU, or with several processes.
    """
    if wish == "auto":
        return device.type == "cuda" and distributed.world_size() == 1
    if wish and device.type != "cuda":
        raise UserError(
            f"params.yaml: runtime.cuda_graph: true needs a GPU, but the device is {device}; set "
            "runtime.cuda_graph: auto"
        )
    if wish and distributed.world_size() > 1:
        raise UserError(
            f"params.yaml: runtime.cuda_graph: true needs one process, but there are "
            f"{distributed.world_size()}; set runtime.cuda_graph: auto, or start one process"
        )
    return wish


def run_steps(
    compute: Compute,
    state: Callable[[], Any],
    device: torch.device,
    *,
    wish: Wish,
    warn: Callable[[str], None],
) -> Compute:
    """A function that takes images on the device and what the host drew, and makes the step.

    Args:
        compute: the step on the device.
        state: see `Graphs`.
        device: where it runs.
        wish: `runtime.cuda_graph`, of which `can_record` is asked.
        warn: is told why `auto` uses no graphs on a GPU.
    """
    if not can_record(wish, device):
        return lambda image, drawn: compute(image, drawn.to(device))
    return Graphs(CudaRecorder(compute, device), state, warn if wish == "auto" else None)


class Graphs:
    """Steps from graphs: one for each kind of step, recorded at its third time and repeated from then on.

    The first steps of a kind are real ones, made as they are, so nothing has to be undone. At the third time
    a step is recorded with black images and what was drawn for the second. Then the third is made as it is,
    twice, and from the graph, each time from the same state. A graph that leaves another state is not used.

    Args:
        recorder: makes and records steps.
        state: all state that a step changes, as nested dicts and lists of tensors and other values. A step
            has to change it in place.
        warn: is told why no graphs are used; None: this is an error.
    """

    def __init__(
        self, recorder: Recorder, state: Callable[[], Any], warn: Callable[[str], None] | None
    ) -> None:
        self._recorder, self._state, self._warn = recorder, state, warn
        self._seen: Counter[Kind] = Counter()
        self._last: dict[Kind, Drawn] = {}  # what was drawn for the last step of a kind
        self._graphs: dict[Kind, Compute] = {}
        self._is_given_up = False

    def __call__(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Make a step; the result is a new tensor."""
        kind = drawn.phase, tuple(part.shape for part in drawn.numbers)
        if kind in self._graphs:
            return self._graphs[kind](image, drawn)
        is_late = len(self._seen) == MOST_KINDS and kind not in self._seen
        if is_late or len(self._graphs) == MOST_GRAPHS or self._is_given_up:
            return self._make(image, drawn)
        self._seen[kind] += 1
        if self._seen[kind] <= WARM_UP:
            self._last[kind] = drawn  # and not the images: those of every kind would fill the memory
            return self._make(image, drawn)
        before: Copied = {}
        try:
            before = copied(self._state())
            return self._check(kind, before, image, drawn)
        except RuntimeError as error:
            fault = f"a step cannot be recorded as a CUDA graph: {first_line(error)}"
        return self._give_up(fault, before, image, drawn)

    def _make(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Make a step as it is; if graphs have taken the memory that it needs, without them from then on."""
        if not self._graphs:
            return self._recorder.make(image, drawn)
        before: Copied = {}
        try:
            before = copied(self._state())
            return self._recorder.make(image, drawn)
        except RuntimeError as error:
            if not has_run_out(error):
                raise
            fault = f"a step needs memory that CUDA graphs have taken: {first_line(error)}"
        return self._give_up(fault, before, image, drawn)

    def _check(self, kind: Kind, before: Copied, image: Tensor, drawn: Drawn) -> Tensor:
        """Make a step as it is and from a new graph; keep the graph if both are the same.

        Raises:
            RuntimeError: they are not, or it cannot be recorded.
        """
        places = self._places()
        steps = [self._from(before, self._recorder.make, image, drawn) for _ in range(2)]
        repeat = self._recorder.record(torch.zeros_like(image), self._last.pop(kind))
        replayed = self._from(before, repeat, image, drawn)
        if self._places() != places:
            raise RuntimeError("a step leaves its state elsewhere than it was")
        if fault := difference(before.values(), steps, replayed):
            raise RuntimeError(f"{fault} after a step from it")
        self._graphs[kind] = repeat
        return replayed.figures

    def _give_up(self, fault: str, before: Copied, image: Tensor, drawn: Drawn) -> Tensor:
        """Make a step, and all later ones, without graphs."""
        if self._warn is None:
            raise UserError(f"params.yaml: runtime.cuda_graph: true: {fault}; set it to auto or false")
        self._warn(f"{fault}; steps run without CUDA graphs, which at small sizes takes longer")
        self._is_given_up = True
        self._graphs.clear()
        self._last.clear()
        if before:
            restore(self._state(), before)
            before.clear()
        return self._recorder.make(image, drawn)

    def _from(self, before: Copied, make: Compute, image: Tensor, drawn: Drawn) -> Left:
        """Make a step from the state `before`."""
        restore(self._state(), before)
        figures = make(image, drawn)
        return Left(copied(self._state()), figures)

    def _places(self) -> list[int]:
        return [value.data_ptr() for _, value in tensors_of(self._state())]


class CudaRecorder:
    """Records steps as CUDA graphs.

    Graphs share their memory, because no two run at a time, and what outlives a step was made before they
    were recorded.

    Args:
        compute: the step on the device.
        device: a GPU.
    """

    def __init__(self, compute: Compute, device: torch.device) -> None:
        self._compute, self._device, self._memory = compute, device, StepMemory(device)
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self._image: Tensor | None = None  # from which all graphs read
        self._ahead: deque[torch.cuda.Event] = deque()  # ends of the steps that were started

    def make(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Make a step on the stream that records, to which autograd and cuBLAS attach what they keep."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), self._memory.measured(), warnings.catch_warnings():
                # Capturable optimizers warn about steps that are not captured, such as these that warm up.
                warnings.filterwarnings("ignore", ".*constructed with capturable=True")
                figures = self._compute(image, drawn.to(self._device))
        finally:  # after a fault the state is restored on the current stream
            current.wait_stream(self._stream)
        return figures

    def record(self, image: Tensor, drawn: Drawn) -> Compute:
        """Record the kernels of a step without running them."""
        self._memory.require()
        shown = self._image = torch.empty_like(image) if self._image is None else self._image
        numbers = pack(drawn.numbers).to(self._device)
        own = drawn._replace(numbers=tuple(unpack(numbers, drawn.numbers)))
        graph = torch.cuda.CUDAGraph()
        # Another thread may pin memory for the next batch meanwhile, so only this one is watched for faults.
        # A capture that fails may leave its stream as the current one; the outer context takes the old back.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            figures = self._compute(shown, own).detach()

        def repeat(image: Tensor, drawn: Drawn) -> Tensor:
            shown.copy_(image)
            numbers.copy_(pack(drawn.numbers).pin_memory(), non_blocking=True)
            graph.replay()
            self._wait_for_earlier()
            return figures.clone()

        return repeat

    def _wait_for_earlier(self) -> None:
        """Keep the host from reading images and starting steps much faster than the GPU makes them."""
        end = torch.cuda.Event(blocking=True)
        end.record(torch.cuda.current_stream(self._device))
        self._ahead.append(end)
        if len(self._ahead) > MOST_AHEAD:
            self._ahead.popleft().synchronize()
