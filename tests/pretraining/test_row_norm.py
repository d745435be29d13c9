"""Batch norm of some rows: what batch norm makes of these rows alone."""

import copy

import pytest
import torch
from torch import nn

from stages.backbone.batch_norm import SplitBatchNorm, split_batch_norms
from stages.pretraining.row_norm import normalize_rows


def _norm(device: torch.device) -> SplitBatchNorm:
    norm = nn.Sequential(nn.BatchNorm1d(5))
    generator = torch.Generator().manual_seed(0)
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(5, generator=generator) + 0.5)
    split_batch_norms(norm, 1)
    found = norm[0].to(device)
    assert isinstance(found, SplitBatchNorm)
    return found


@pytest.mark.parametrize("count", [2, 3, 8])
def test_rows_that_count_are_normalized_as_if_they_were_alone(device: torch.device, count: int) -> None:
    norm = _norm(device)
    alone = copy.deepcopy(norm)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).to(device)
    is_counted = torch.zeros(8, dtype=torch.bool, device=device)
    is_counted[torch.randperm(8, generator=torch.Generator().manual_seed(2))[:count].to(device)] = True
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = normalize_rows(norm, first, is_counted)[is_counted], alone(second[is_counted])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (found**3).sum().backward()
    (expected**3).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-4)
    assert first.grad is not None
    assert not first.grad[~is_counted].any()
    for one, other in zip(norm.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(norm.get_buffer(name), alone.get_buffer(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_leave_no_trace(device: torch.device, count: int) -> None:
    norm = _norm(device)
    before = copy.deepcopy(norm.state_dict())
    is_counted = torch.arange(4, device=device) < count
    found = normalize_rows(norm, torch.randn(4, 5, device=device), is_counted)
    assert found.isfinite().all()
    torch.testing.assert_close(dict(norm.state_dict()), dict(before))


def test_in_bfloat16_statistics_keep_float32(device: torch.device) -> None:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).to(device).bfloat16()
    is_counted = torch.arange(8, device=device) < 5
    exact, rounded = _norm(device), _norm(device)
    expected, found = normalize_rows(exact, x.float(), is_counted), normalize_rows(rounded, x, is_counted)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(rounded.running_var, exact.running_var)
