"""What tells a good pretraining from a bad one, and the rules for small data, against plain arithmetic."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stages.backbone.batch_norm import SplitBatchNorm, split_batch_norms
from stages.pretraining.figures import (
    CURES,
    NAN_CURES,
    SEEN,
    Expected,
    FeatureMoments,
    explain,
    find_faults,
    instance_accuracy,
    perplexity,
    summarise,
)
from stages.pretraining.moco import choose_key_momentum, choose_queue_size
from stages.settings.params import load
from tests.datasets import REPOSITORY

SETTINGS = load(REPOSITORY / "params.yaml", "pretrain").pretrain


def test_effective_rank_of_features_that_came_in_parts() -> None:
    feature = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [9, 3, 3, 1, 1, 0.1]
    )
    moments = FeatureMoments(6, torch.device("cpu"))
    for part in feature.split(7):
        moments.add(part)
    unit = feature.double().numpy() / np.linalg.norm(feature.double().numpy(), axis=1, keepdims=True)
    singular = np.linalg.svd(unit - unit.mean(0), compute_uv=False)
    share = singular / singular.sum()
    assert moments.effective_rank() == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)
    moments.reset()
    moments.add(torch.eye(4, 6))
    assert moments.effective_rank() == pytest.approx(3, rel=1e-5), "four corners of a simplex span three"


def test_features_along_one_line_and_features_that_are_one_point() -> None:
    line, point = FeatureMoments(5, torch.device("cpu")), FeatureMoments(5, torch.device("cpu"))
    line.add(torch.tensor([[1.0, 1, 0, 0, 0], [1, -1, 0, 0, 0], [1, 1, 0, 0, 0]]))
    assert line.effective_rank() == pytest.approx(1, abs=1e-5)
    point.add(torch.tensor([[1.0, 0, 0, 0, 0]] * 3))
    assert point.effective_rank() == pytest.approx(1, abs=1e-5)
    rounded = FeatureMoments(64, torch.device("cpu"))
    one = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    rounded.add(one.repeat(32, 1))
    assert rounded.effective_rank() == pytest.approx(1, abs=1e-5), "what is left of a point is rounding"


def test_instance_accuracy_by_hand() -> None:
    second = torch.eye(4)
    first = torch.tensor([[0.1, 0.9, 0, 0], [0, 0, 0.2, 0.8]])
    assert float(instance_accuracy(first, second, 0)) == 0.0
    assert float(instance_accuracy(first, second, 1)) == 0.5
    assert float(instance_accuracy(first, second, 2)) == 0.5


@pytest.mark.parametrize(("share", "expected"), [([1.0, 0, 0, 0], 1), ([0.25] * 4, 4), ([0.5, 0.5, 0, 0], 2)])
def test_perplexity_counts_what_takes_part(share: list[float], expected: int) -> None:
    assert float(perplexity(torch.tensor([share]))) == pytest.approx(expected)


SOUND = {"loss": 2.0, "uniformity": -3.0, "effective_rank": 20.0, "usage": 0.5}
EXPECTED = Expected(64)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"loss": math.log(64) + 0.009}, "stuck_at_chance"),
        ({"loss": math.log(64) - 0.009}, "stuck_at_chance"),
        ({"uniformity": -0.01}, "collapsed"),
        ({"effective_rank": 1.2}, "one_direction"),
    ],
)
def test_each_fault_has_its_signs_and_cures(change: dict[str, float], fault: str) -> None:
    assert find_faults(SOUND, EXPECTED) == []
    assert find_faults(SOUND | {"loss": math.log(64) + 0.02}, EXPECTED) == []
    figures = SOUND | change
    assert find_faults(figures, EXPECTED) == [fault]
    for method in NAN_CURES:
        if fault in CURES[method]:
            text = explain(fault, figures, EXPECTED, method)
            assert text.startswith(f"{fault}: ")
            assert text.endswith(CURES[method][fault])
            assert "{" not in text


def test_every_fault_that_a_method_can_have_has_cures() -> None:
    with_candidates = {"stuck_at_chance", "collapsed", "one_direction"}
    assert {method: set(cures) for method, cures in CURES.items()} == {
        **dict.fromkeys(("mocov2", "swav", "densecl"), with_candidates),
        "slotcon": {"collapsed", "one_direction", "one_prototype"},
    }
    assert set(SEEN) == {fault for cures in CURES.values() for fault in cures}
    assert set(NAN_CURES) == set(CURES)


def test_a_method_without_candidates_has_no_chance_level_but_prototypes_may_collapse() -> None:
    slots = Expected(None, 32)
    assert find_faults(SOUND | {"loss": 0.0, "usage": 1.6 / 32}, slots) == []
    figures = SOUND | {"usage": 1.4 / 32}
    assert find_faults(figures, slots) == ["one_prototype"]
    assert find_faults(figures, EXPECTED) == []
    assert explain("one_prototype", figures, slots, "slotcon").startswith(
        "one_prototype: nearly all cells belong to one of 32 prototypes (1.4 in effect); look at the images"
    )


def test_faults_are_counted_where_training_has_settled() -> None:
    rows = [{"epoch": epoch, **SOUND, "loss": math.log(8)} for epoch in (1, 2, 3)]
    settings = SETTINGS.model_copy(update={"warmup_epochs": 1.0})
    summary = summarise(pd.DataFrame(rows), settings, Expected(8))
    assert summary["epochs_with_fault"] == {"stuck_at_chance": 2, "collapsed": 0, "one_direction": 0}
    assert summary["chance_loss"] == pytest.approx(math.log(8))
    swav = settings.swav.model_copy(update={"freeze_epochs": 2})
    frozen = settings.model_copy(update={"method": "swav", "swav": swav})
    assert summarise(pd.DataFrame(rows), frozen, Expected(8))["epochs_with_fault"]["stuck_at_chance"] == 1


@pytest.mark.parametrize(
    ("num_images", "batch_size", "expected"),
    [(640, 32, 256), (367, 32, 128), (1_281_167, 256, 65536), (40, 32, 32), (100, 24, 24), (200, 24, 48)],
)
def test_the_queue_is_half_of_the_images_by_rule(num_images: int, batch_size: int, expected: int) -> None:
    settings = SETTINGS.model_copy(update={"queue_size": 0, "batch_size": batch_size})
    assert choose_queue_size(settings, num_images) == expected
    assert choose_queue_size(SETTINGS.model_copy(update={"queue_size": 96}), num_images) == 96


@pytest.mark.parametrize(
    ("num_steps", "expected"), [(1_000_000, 0.999), (1000, 0.99), (200, 0.95), (10, 0.9)]
)
def test_keys_remember_a_tenth_of_the_run_by_rule(num_steps: int, expected: float) -> None:
    assert choose_key_momentum(SETTINGS.model_copy(update={"key_momentum": 0.0}), num_steps) == pytest.approx(
        expected
    )
    assert choose_key_momentum(SETTINGS.model_copy(update={"key_momentum": 0.5}), num_steps) == 0.5


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5, 4)])
def test_groups_are_normalised_each_by_its_own_statistics(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    plain = nn.BatchNorm1d(3) if len(shape) == 2 else nn.BatchNorm2d(3)
    network = nn.Sequential(plain)
    split_batch_norms(network, 2)
    (norm,) = network
    assert isinstance(norm, SplitBatchNorm)
    assert norm.weight is plain.weight
    out = network(x)
    axes = [0, *range(2, x.ndim)]
    running = []
    for rows in (slice(0, 4), slice(4, 8)):
        group = x[rows].double()
        centred = group - group.mean(axes, keepdim=True)
        expected = centred / (centred.square().mean(axes, keepdim=True) + plain.eps).sqrt()
        torch.testing.assert_close(out[rows].double(), expected, rtol=1e-4, atol=1e-5)
        running.append((group.mean(axes), group.transpose(0, 1).flatten(1).var(1)))
    means, variances = zip(*running, strict=True)
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * sum(means) / 2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        norm.running_var.double(), 0.9 + 0.1 * sum(variances) / 2, rtol=1e-4, atol=1e-6
    )
    assert int(norm.num_batches_tracked) == 1
    network.eval()
    expected = (x - _column(norm.running_mean, x)) / (_column(norm.running_var, x) + norm.eps).sqrt()
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_one_group_in_one_process_is_a_plain_batch_norm_with_one_count_for_all() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
    network = copy.deepcopy(plain)
    split_batch_norms(network, 1)
    twin = copy.deepcopy(network)  # counts its own batches
    for _ in range(2):
        image = torch.randn(4, 3, 6, 5)
        assert torch.equal(network(image), plain(image))
    for name, value in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    network[2].eval()
    network(torch.randn(4, 3, 6, 5))
    assert [int(network[place].num_batches_tracked) for place in (0, 2)] == [3, 2]
    assert [int(twin[place].num_batches_tracked) for place in (0, 2)] == [0, 0]


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))
