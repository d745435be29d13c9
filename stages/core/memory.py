"""Memory of a GPU: what is left, what a CUDA graph needs, and what to say when it runs out."""

import contextlib
from collections.abc import Iterator

import torch

from stages.settings.errors import UserError

STEPS_BESIDE = (
    1.5  # memory for a step that is not recorded, beside that of a CUDA graph; the rest is for gaps
)


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
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(f"{what}the memory of the GPU ran out ({reason}); {remedy}") from error


def has_run_out(error: RuntimeError) -> bool:
    """Whether the memory of a GPU ran out; torch, CUDA and NCCL raise errors of their own of it."""
    return "out of memory" in str(error)


def unused_bytes(device: torch.device) -> int:
    """Memory of a GPU that this process can take: what is free, and what torch keeps there without use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def transient_bytes(device: torch.device) -> int:
    """Memory of a GPU that was in use since the peak was last reset, and no longer is; resets the peak."""
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak - torch.cuda.memory_allocated(device)


def require_memory(device: torch.device, step: int, between: int) -> None:
    """Check that a CUDA graph can keep the memory of a step to itself.

    Steps that are not recorded, and work between steps, cannot use the memory of a graph.

    Args:
        device: a GPU.
        step: bytes of a step.
        between: bytes of the work between steps, such as a clustering.

    Raises:
        RuntimeError: the GPU has less.
    """
    needed, unused = step + max(STEPS_BESIDE * step, between), unused_bytes(device)
    if needed > unused:
        raise RuntimeError(
            f"with its memory {needed / 1e9:.1f} GB are needed, and {unused / 1e9:.1f} are left"
        )
