"""Memory of a GPU: what is left, what a CUDA graph needs, and what to say when it runs out."""

import contextlib
from collections.abc import Iterator

import torch

from stages.settings.errors import UserError

STEPS_BESIDE = 1.5  # memory beside a CUDA graph, in steps: for one that is not recorded, and for gaps


@contextlib.contextmanager
def enough_memory(key: str) -> Iterator[None]:
    """Report what to do when the memory of a GPU runs out; also a decorator.

    Args:
        key: number of images of a pass, as in params.yaml; a `micro_batch` of 0 is the whole batch.

    Raises:
        UserError: the memory ran out.
    """
    is_part = key.endswith(".micro_batch")
    remedy = f"set {key} to a smaller part of batch_size than now" if is_part else f"lower {key}"
    with memory_for(
        f"{remedy}, set precision: bfloat16, share the work among more GPUs (runtime.nproc: 0), or end "
        "other programs that use the GPU",
        f"params.yaml: {key}: ",
    ):
        yield


@contextlib.contextmanager
def memory_for(remedy: str, what: str = "") -> Iterator[None]:
    """Report that the memory of a GPU ran out, and what to do.

    Args:
        remedy: end of the message.
        what: beginning of the message: what the memory was for.

    Raises:
        UserError: the memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not has_run_out(error):
            raise
        reason = first_line(error).partition(". ")[0]
        raise UserError(f"{what}the memory of the GPU ran out ({reason}); {remedy}") from error


def first_line(error: RuntimeError) -> str:
    """What torch says first; hints for its own developers follow."""
    return str(error).partition("\n")[0]


def has_run_out(error: RuntimeError) -> bool:
    """Whether the memory of a GPU ran out; torch, CUDA and its libraries raise errors of their own of it."""
    return "out of memory" in str(error) or "ALLOC_FAILED" in str(error)  # of cuBLAS and cuDNN


def unused_bytes(device: torch.device) -> int:
    """Memory of a GPU that this process can take: what is free, and what torch keeps there without use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class StepMemory:
    """Memory of a GPU that steps take for a while, and the work before the first, such as a clustering.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._between: int | None = None
        self._step = 0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the step that is made inside."""
        before = self._take_peak()
        self._between = before if self._between is None else self._between
        yield
        self._step = max(self._step, self._take_peak())

    def require(self) -> None:
        """Check that a CUDA graph can keep the memory of a step to itself.

        Steps that are not recorded, and work between steps, cannot use the memory of a graph.

        Raises:
            RuntimeError: the GPU has less.
        """
        beside = max(STEPS_BESIDE * self._step, self._between or 0)
        needed, unused = self._step + beside, unused_bytes(self._device)
        if needed > unused:
            raise RuntimeError(
                f"with its memory {needed / 1e9:.1f} GB are needed, and {unused / 1e9:.1f} are left"
            )

    def _take_peak(self) -> int:
        """Bytes that were in use since the last call, and no longer are."""
        peak = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak - torch.cuda.memory_allocated(self._device)
