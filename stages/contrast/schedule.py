"""The learning rate over a training run."""

import math


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Factor of the base learning rate at `step`: linear rise, then half a cosine down to 0.

    Args:
        step: 0 is the first.
        total_steps: of the whole run.
        warmup_steps: of the rise; 0 starts at the top, as MoCo v2 does.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
