"""Batch norm over groups of the batch, with the same result for one or several processes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core import distributed
from stages.settings.errors import UserError


class SplitBatchNorm(nn.BatchNorm2d):
    """Normalizes each of `splits` groups of the whole batch with its own statistics.

    Groups and process shares are consecutive parts of the batch. Either one group spans all processes, or
    each process holds one or more whole groups. The running statistics are updated with the mean over groups
    (calling a plain batch norm for each group would give more weight to the last group).
    `torch.nn.SyncBatchNorm` supports only one group over all processes, and only GPUs.
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

    def _over_all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = x.float()
        others = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        count = distributed.total(values.new_full((), x.numel() / x.shape[1]))  # shares may differ in size
        mean = distributed.total_with_gradient(values.sum(others)) / count
        centred = values - mean.view(shape)
        variance = distributed.total_with_gradient(centred.square().sum(others)) / count
        scale = self.weight * (variance + self.eps).rsqrt()
        out = centred * scale.view(shape) + self.bias.view(shape)
        return out.to(x.dtype), mean.detach(), variance.detach() * count / (count - 1)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept both vectors and feature maps."""


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


def _split(norm: nn.BatchNorm1d | nn.BatchNorm2d, splits: int) -> SplitBatchNorm:
    new = SplitBatchNorm(norm.num_features, norm.eps, norm.momentum)
    new.weight, new.bias, new.splits = norm.weight, norm.bias, splits
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    return new.train(norm.training)
