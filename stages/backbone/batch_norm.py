"""Batch norm over groups of the batch, with the same result for one or several processes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stages.core import distributed
from stages.settings.errors import UserError


class SplitBatchNorm(nn.BatchNorm2d):
    """Normalizes each of `splits` groups of the whole batch with its own statistics.

    Groups and process shares are consecutive parts of the batch. Either one group spans all processes, or
    each process holds one or more whole groups. The running statistics are updated with the mean over groups
    (calling a plain batch norm for each group would give more weight to the last group).
    `torch.nn.SyncBatchNorm` supports only one group over all processes, and only GPUs; there it waits for the
    GPU in every layer, and in bfloat16 it fails if the share of a process is empty, as of guidance views.
    """

    splits: int

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [n, C, ...], this process's share of the batch."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        # Without momentum the statistics are means over all batches, as `update_bn` asks for.
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        if self.splits == distributed.world_size() == 1:
            statistics = self.running_mean, self.running_var
            return F.batch_norm(x, *statistics, self.weight, self.bias, True, share, self.eps)
        local = self.splits // distributed.world_size()
        out, mean, variance = self._by_group(x, local) if local else self._over_all(x)
        with torch.no_grad():
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance, share)
        return out

    def _by_group(self, x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        means = torch.zeros(groups, self.num_features, device=x.device)
        variances = torch.zeros_like(means)
        parts = [
            F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            for group, mean, variance in zip(x.chunk(groups), means, variances, strict=True)
        ]
        return torch.cat(parts), means.mean(0), variances.mean(0)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _over_all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, variance = _OverProcesses.apply(x, self.weight, self.bias, self.eps)
        return out, mean, variance

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept both vectors and feature maps."""


class _OverProcesses(torch.autograd.Function):
    """Batch norm with statistics of all processes, from one collective in each direction.

    Shares may differ in size, or be empty. As `torch.nn.SyncBatchNorm`, with its fused functions on a GPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "n C ..."],
        weight: Float[Tensor, " C"],
        bias: Float[Tensor, " C"],
        eps: float,
    ) -> tuple[Float[Tensor, "n C ..."], Float[Tensor, " C"], Float[Tensor, " C"]]:
        """Return the normalized share; mean and unbiased variance of the whole batch, without gradient."""
        x = _dense(x)
        own = _statistics(x, eps) if x.numel() else weight.new_zeros(2, len(weight))
        packed = torch.cat([own.flatten().to(weight), weight.new_full((1,), x.numel() / len(weight))])
        means, variances, counts = distributed.gather(packed[None]).split(
            [len(weight), len(weight), 1], dim=1
        )
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        unbiased = variance * total / (total - 1)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), total)
        ctx.mark_non_differentiable(mean, unbiased)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, unbiased

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the share, and this process's part of those of weight and bias."""
        x, weight, mean, scale, total = ctx.saved_tensors
        gradient = _dense(gradient)
        sums, parts = _reduce(gradient, x, weight, mean, scale)
        given = None
        if ctx.needs_input_grad[0]:
            given = _spread(gradient, x, weight, mean, scale, distributed.total(sums), total)
        wanted = ctx.needs_input_grad[1:3]
        return (
            given,
            *(part if is_wanted else None for part, is_wanted in zip(parts, wanted, strict=True)),
            None,
        )


def _dense(x: Tensor) -> Tensor:
    """In one of the two memory formats that the fused functions know."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _statistics(x: Tensor, eps: float) -> Float[Tensor, "2 C"]:
    """Mean and variance of a share."""
    if x.is_cuda:  # accumulates in float32, and gives the scale
        mean, scale = torch.batch_norm_stats(x, eps)
        return torch.stack([mean, scale.pow(-2) - eps])
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.stack(torch.batch_norm_update_stats(values, None, None, 0.0))


def _reduce(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Float[Tensor, "2 C"], Float[Tensor, "2 C"]]:
    """Sums of g and g (x - mean) over a share, and the gradients of weight and bias."""
    if not x.numel():
        sums = mean.new_zeros(2, len(mean))
    elif x.is_cuda:
        found = torch.batch_norm_backward_reduce(gradient, x, mean, scale, weight, True, False, False)
        sums = torch.stack(found[:2])
    else:
        others = [axis for axis in range(x.ndim) if axis != 1]
        values = gradient.to(mean)
        sums = torch.stack([values.sum(others), (values * (x - _along(mean, x))).sum(others)])
    return sums, torch.stack([sums[1] * scale, sums[0]])


def _spread(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    sums: Float[Tensor, "2 C"],
    total: Float[Tensor, " 1"],
) -> Tensor:
    """The gradient of a share: weight scale (g - sum g / N - (x - mean) scale^2 sum g (x - mean) / N)."""
    if not x.numel():
        return torch.zeros_like(x)
    if x.is_cuda:
        return torch.batch_norm_backward_elemt(
            gradient, x, mean, scale, weight, sums[0], sums[1], total.int()
        )
    factor, (shift, slope) = _along(weight * scale, x), sums / total
    centred = (x - _along(mean, x)) * _along(scale.square() * slope, x)
    return (factor * (gradient - _along(shift, x) - centred)).to(x.dtype)


def _along(values: Float[Tensor, " C"], x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 2))


class BatchCounter:
    """Counts the batches of all batch norms of a network, with one call of an operator in place of many.

    Args:
        network: its `forward` counts, if it is in training mode.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms = [module for module in network.modules() if isinstance(module, SplitBatchNorm)]
        network.register_forward_pre_hook(self)

    @torch.no_grad()
    def __call__(self, network: nn.Module, inputs: object) -> None:
        """Count one batch."""
        counts = [norm.get_buffer("num_batches_tracked") for norm in self._norms if norm.training]
        if counts:
            torch._foreach_add_(counts, 1)


def split_batch_norms(module: nn.Module, splits: int) -> None:
    """Replace every batch norm of a network by one with `splits` groups; parameter names and shapes stay.

    Raises:
        UserError: the groups cannot be split evenly over the processes.
    """
    world = distributed.world_size()
    if splits > 1 and splits % world:
        raise UserError(
            f"params.yaml: pretrain.bn_splits: {splits} groups cannot be split over {world} processes; "
            "set 1 (statistics of the whole batch) or a multiple of the number of processes"
        )
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, _split(child, splits))
    BatchCounter(module)


def set_groups_of_pass(network: nn.Module, splits: int, num_passes: int) -> None:
    """Let the batch norms of a network take one of several passes of each process's share.

    Groups remain those of the whole batch where no pass cuts one: so many passes that each is a group, or
    several. Otherwise each pass is a group of its own.

    Args:
        network: with `splits` groups for the whole batch.
        splits: number of groups of the whole batch.
        num_passes: number of passes.
    """
    world = distributed.world_size()
    for module in network.modules():
        if isinstance(module, SplitBatchNorm):
            groups, cut = divmod(splits // world, num_passes)
            module.splits = 1 if splits == 1 else world * (1 if cut else groups)


@contextlib.contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Leave the running statistics as they are, whatever passes through the network."""
    norms = [module for module in network.modules() if isinstance(module, SplitBatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _split(norm: nn.BatchNorm1d | nn.BatchNorm2d, splits: int) -> SplitBatchNorm:
    new = SplitBatchNorm(norm.num_features, norm.eps, norm.momentum)
    new.weight, new.bias, new.splits = norm.weight, norm.bias, splits
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    return new.train(norm.training)
