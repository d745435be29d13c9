"""Batch norm with the statistics of some rows, in a shape that does not depend on their number."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stages.backbone.batch_norm import SplitBatchNorm

LEAST_ROWS = 2  # that have a variance


def normalize_rows(
    norm: SplitBatchNorm, x: Float[Tensor, "M C"], is_counted: Bool[Tensor, " M"]
) -> Float[Tensor, "M C"]:
    """What `norm` makes of the rows that count if it sees them alone; for a batch of one process.

    Args:
        norm: in training mode; its running statistics follow, if at least `LEAST_ROWS` rows count.
        x: all rows. Those that do not count are normalized too, and change nothing.
        is_counted: which rows count.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    weight = is_counted[:, None].to(values.dtype)
    count = weight.sum()
    mean = (weight * values).sum(0) / count.clamp_min(1)
    centred = values - mean
    variance = (weight * centred.square()).sum(0) / count.clamp_min(1)
    with torch.no_grad():
        share = norm.momentum * (count >= LEAST_ROWS).to(values.dtype)
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(variance * count / (count - 1).clamp_min(1), share)
    scale = (variance + norm.eps).rsqrt() * norm.weight
    return torch.addcmul(norm.bias, centred, scale).to(x.dtype)
