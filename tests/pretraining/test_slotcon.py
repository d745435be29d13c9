"""SlotCon's equations and a whole step against loops in float64 (Wen et al., 2022)."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stages.backbone.resnet import ResNet
from stages.core.step import Moment
from stages.pretraining.encoder import dilate
from stages.pretraining.slot_networks import SlotEncoder
from stages.pretraining.slotcon import MOST_SLOTS, SlotCon
from stages.pretraining.slots import active, align, group, grouping_loss, rising_momentum, slot_sums
from stages.pretraining.views import Look, Views, render_overlapping
from stages.settings.params import load
from tests.datasets import REPOSITORY

Plain = list[float]


def _random(*shape: int, seed: int, device: torch.device | None = None) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _dot(first: Plain, second: Plain) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def _unit(values: Plain) -> Plain:
    return [value / math.sqrt(_dot(values, values)) for value in values]


def _softmax(values: Plain) -> Plain:
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def test_group(device: torch.device) -> None:
    cell, prototypes = _random(2, 4, 2, 3, seed=0, device=device), _random(5, 4, seed=1, device=device)
    found = group(cell, prototypes, 0.07)
    vectors = [_unit(row) for row in prototypes.double().tolist()]
    for image in range(2):
        cells = cell[image].double().flatten(1).T.tolist()  # rows of the map, one after the other
        scores = [[_dot(_unit(one), vector) for vector in vectors] for one in cells]
        shares = [[share + 1e-6 for share in _softmax([score / 0.07 for score in row])] for row in scores]
        expected = torch.tensor(scores).T.view(5, 2, 3)
        torch.testing.assert_close(found.score[image].cpu(), expected, rtol=1e-5, atol=1e-5)
        for number in range(5):
            whole = sum(share[number] for share in shares)
            mean = [
                sum(share[number] / whole * one[axis] for share, one in zip(shares, cells, strict=True))
                for axis in range(4)
            ]
            assert found.slot[image, number].tolist() == pytest.approx(mean, rel=1e-3, abs=1e-4)


def test_lengths_do_not_change_scores_but_slots() -> None:
    cell, prototypes = _random(2, 4, 3, 3, seed=0), _random(5, 4, seed=1)
    plain, longer = group(cell, prototypes, 0.07), group(3 * cell, 2 * prototypes, 0.07)
    torch.testing.assert_close(longer.score, plain.score)
    torch.testing.assert_close(longer.slot, 3 * plain.slot, rtol=1e-4, atol=1e-5)


def test_grouping_loss(device: torch.device) -> None:
    student, teacher = (_random(2, 4, 2, 2, seed=seed, device=device).tanh() for seed in (0, 1))
    centre = _random(4, seed=2, device=device) * 0.1
    found = grouping_loss(student, teacher, centre, 0.1, 0.07)
    losses = []
    for image in range(2):
        for row in range(2):
            for column in range(2):
                known = teacher[image, :, row, column].double().tolist()
                told = student[image, :, row, column].double().tolist()
                shifts = centre.double().tolist()
                target = _softmax([(a - c) / 0.07 for a, c in zip(known, shifts, strict=True)])
                guess = _softmax([value / 0.1 for value in told])
                losses.append(-sum(t * math.log(g) for t, g in zip(target, guess, strict=True)))
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_scores_that_are_all_the_same_have_the_loss_of_chance() -> None:
    same = torch.full((2, 9, 3, 3), 0.4)
    assert grouping_loss(same, same, torch.zeros(9), 0.1, 0.07).item() == pytest.approx(math.log(9), rel=1e-5)


def test_a_prototype_is_active_where_it_wins_a_cell() -> None:
    score = torch.zeros(2, 4, 2, 2)
    score[0, 1] = 1.0
    score[0, 3, 0, 1] = 2.0
    score[1, 0] = 0.1
    assert active(score).tolist() == [[False, True, False, True], [True, False, False, False]]


def test_slot_sums(device: torch.device) -> None:
    query, keys = (F.normalize(_random(n, 4, seed=n, device=device), dim=1) for n in (3, 6))
    target = torch.tensor([4, 0, 4], device=device)
    query[0] = keys[4]
    loss, right, distance = slot_sums(query, keys, target, 0.2)
    expected_loss = expected_right = expected_distance = 0.0
    for one, place in zip(query.double().tolist(), target.tolist(), strict=True):
        cosines = [_dot(one, key) for key in keys.double().tolist()]
        expected_loss -= 0.4 * math.log(_softmax([value / 0.2 for value in cosines])[place])
        expected_right += cosines.index(max(cosines)) == place
        expected_distance += 2 - 2 * cosines[place]
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    assert right.item() == expected_right >= 1
    assert distance.item() == pytest.approx(expected_distance, rel=1e-4)


def test_slots_that_do_not_count_have_no_part_in_the_sums(device: torch.device) -> None:
    query, keys = (F.normalize(_random(6, 4, seed=n, device=device), dim=1).requires_grad_() for n in (3, 6))
    is_asked = torch.tensor([True, False, True, False, False, True], device=device)
    is_key = torch.tensor([True, False, True, True, False, True], device=device)
    target = torch.arange(6, device=device)
    found = slot_sums(query, keys, target, 0.2, is_asked=is_asked, is_key=is_key)
    places = is_key.long().cumsum(0) - 1
    expected = slot_sums(query[is_asked], keys[is_key], places[is_asked], 0.2)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found[0], (query, keys))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected[0], (query, keys)))


def test_gradients() -> None:
    cell, prototypes = _random(1, 3, 2, 2, seed=0).double(), _random(4, 3, seed=1).double()
    teacher, centre = _random(1, 4, 2, 2, seed=2).double(), torch.zeros(4).double()
    keys = F.normalize(_random(4, 3, seed=3).double(), dim=1)
    target = torch.tensor([0, 1, 2, 3])

    def whole(cell: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        slot, score = group(cell, prototypes, 0.5)
        loss, _, _ = slot_sums(F.normalize(slot[0], dim=1), keys, target, 0.2)
        return loss + grouping_loss(score, teacher, centre, 0.5, 0.4)

    assert torch.autograd.gradcheck(whole, (cell.requires_grad_(), prototypes.requires_grad_()))


def test_the_momentum_rises_to_one_by_half_a_cosine() -> None:
    assert rising_momentum(0.99, 0.0) == pytest.approx(0.99)
    assert rising_momentum(0.99, 0.5) == pytest.approx(0.995)
    assert rising_momentum(0.99, 1.0) == pytest.approx(1.0)
    assert rising_momentum(0.99, 0.25) == pytest.approx(1 - 0.01 * math.cos(math.pi / 8) ** 2)


def _slotcon(**own: Any) -> SlotCon:
    torch.manual_seed(0)
    encoder = SlotEncoder(ResNet("resnet18", 8, 2), 8, 6, 5)
    dilate(encoder.backbone)
    settings = load(REPOSITORY / "params.yaml", "pretrain").pretrain
    update = {"projection_dim": 6, "batch_size": 4, "epochs": 10, "temperature": 0.2}
    update["dense"] = settings.dense.model_copy(update={"image_px": 32})
    changes = {"num_prototypes": 5, "hidden_dim": 8, "overlap": 0.5, "centre_momentum": 0.9, **own}
    update["slotcon"] = settings.slotcon.model_copy(update=changes)
    settings = settings.model_copy(update=update)
    return SlotCon(encoder, settings, teacher_momentum=0.75, precision="float32")


@torch.no_grad()
def _disagree(slotcon: SlotCon) -> None:
    """All cells belong to the first prototype by the student, to the second by the teacher."""
    for side, first in ((slotcon.encoder, 1.0), (slotcon.teacher, -1.0)):
        side.projector[-1].weight.zero_()
        side.projector[-1].bias.copy_(torch.tensor([first, 0, 0, 0, 0, 0]))
        side.prototypes.copy_(torch.eye(5, 6) * torch.tensor([1.0, -1, -1, -1, -1])[:, None])
        side.prototypes[1, 0] = -0.5


def _views() -> Views:
    photometric = load(REPOSITORY / "params.yaml", "pretrain").pretrain.photometric
    return Views(photometric, 0.75, torch.Generator().manual_seed(5))


IMAGE = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(4))


def _plain_slot_loss(student: Any, teacher: Any, predictor: Any, temperature: float) -> float:
    """All slots of all images in loops; only the predictor, with its batch norm, sees them together."""
    queries, targets, keys = [], [], []
    numbers: dict[tuple[int, int], int] = {}
    won = [
        [set(one.score[image].argmax(0).flatten().tolist()) for image in range(4)]
        for one in (student, teacher)
    ]
    for image in range(4):
        for number in sorted(won[1][image]):
            numbers[image, number] = len(keys)
            keys.append(_unit(teacher.slot[image, number].double().tolist()))
    for image in range(4):
        for number in sorted(won[0][image] & won[1][image]):
            queries.append(student.slot[image, number])
            targets.append(numbers[image, number])
    losses = []
    for row, target in zip(predictor(torch.stack(queries)).double().tolist(), targets, strict=True):
        chances = _softmax([_dot(_unit(row), key) / temperature for key in keys])
        losses.append(-2 * temperature * math.log(chances[target]))
    return sum(losses) / len(losses)


@pytest.fixture(params=[True, False], ids=["one shape", "shapes vary"])
def _shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All slots of a batch, of which some count; and those that count alone."""
    monkeypatch.setattr(SlotCon, "has_fixed_shape", lambda *_: request.param)


@pytest.mark.usefixtures("_shape")
@pytest.mark.parametrize("weight", [0.3, 1.0, 0.0])
def test_a_whole_step(weight: float) -> None:
    """Loss, centre and teacher after one step, from the outputs of the networks."""
    slotcon = _slotcon(grouping_weight=weight)
    slotcon.centre.copy_(torch.linspace(-0.1, 0.1, 5))
    networks = copy.deepcopy((slotcon.encoder, slotcon.teacher))
    predictor = copy.deepcopy(slotcon.predictor)
    centre = slotcon.centre.clone()
    measured = slotcon(IMAGE, slotcon.draw(_views(), 4, Moment(5, 0, 1)))
    measured.loss.backward()
    with torch.no_grad():
        slotcon.encoder.prototypes.add_(1.0)
    slotcon.after_step()

    own = slotcon._settings.slotcon
    looks = list(map(Look, own.blur_probability, own.solarize_probability))
    numbers = _views().draw_overlapping(4, tuple(slotcon._settings.crop_area), 32, 0.5, looks)
    pair, common = render_overlapping(IMAGE, numbers, 32)
    grouped = [[group(net(view).cell, net.prototypes, 0.07) for view in pair] for net in networks]
    total = 0.0
    for i, j in ((0, 1), (1, 0)):
        student, teacher = grouped[0][i], grouped[1][j]
        scores = align(student.score, common[i]), align(teacher.score, common[j])
        cells = grouping_loss(*scores, centre, own.student_temperature, own.teacher_temperature).item()
        slots = _plain_slot_loss(student, teacher, predictor, 0.2)
        total += weight * cells + (1 - weight) * slots  # the sum over both directions
    assert measured.loss.item() == pytest.approx(total, rel=1e-4)
    mean = torch.cat([one.score for one in grouped[1]]).mean((0, 2, 3))
    torch.testing.assert_close(slotcon.centre, 0.9 * centre + 0.1 * mean, rtol=1e-4, atol=1e-6)
    keeps = 1 - 0.25 / 2  # half of the run is done
    moved = networks[1].prototypes + (1 - keeps)
    torch.testing.assert_close(slotcon.teacher.prototypes, moved)
    won = torch.cat([one.score for one in grouped[1]]).argmax(1).flatten()
    counts = torch.bincount(won, minlength=5).double()
    assert slotcon.assigned.tolist() == counts.tolist()
    share = counts[counts > 0] / counts.sum()
    assert slotcon.take_usage() == pytest.approx(float(torch.exp(-(share * share.log()).sum())) / 5, rel=1e-5)
    assert float(slotcon.assigned.sum()) == 0


def _one_active(score: torch.Tensor) -> torch.Tensor:
    """One slot of the whole batch."""
    return torch.arange(score.shape[0] * score.shape[1]).view(score.shape[:2]) == 2


@pytest.mark.parametrize("queries", ["many", "one", "none"])
def test_a_step_in_one_shape_is_that_whose_shape_varies(
    monkeypatch: pytest.MonkeyPatch, queries: str
) -> None:
    if queries == "one":
        monkeypatch.setattr("stages.pretraining.slotcon.active", _one_active)
    steps = []
    for is_fixed in (True, False):
        monkeypatch.setattr(SlotCon, "has_fixed_shape", lambda *_, fixed=is_fixed: fixed)
        slotcon = _slotcon().double()
        if queries == "none":
            _disagree(slotcon)
        with monkeypatch.context() as inner:
            inner.setattr(torch.Tensor, "float", torch.Tensor.double)
            measured = slotcon(IMAGE.double(), slotcon.draw(_views(), 4, Moment(0, 0, 1)))
        measured.loss.backward()
        slotcon.after_step()
        gradients = {name: value.grad for name, value in slotcon.named_parameters() if value.requires_grad}
        steps.append((measured, gradients, dict(slotcon.named_buffers())))
    torch.testing.assert_close(*steps)


def test_only_few_slots_on_a_gpu_have_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    slotcon = _slotcon(num_prototypes=64)
    assert not slotcon.has_fixed_shape(4)  # on a CPU
    slotcon.to("meta")
    assert slotcon.has_fixed_shape(MOST_SLOTS // 64)
    assert not slotcon.has_fixed_shape(MOST_SLOTS // 64 + 1)
    monkeypatch.setattr("stages.core.distributed.world_size", lambda: 2)
    assert not slotcon.has_fixed_shape(4)


@pytest.mark.usefixtures("_shape")
def test_every_part_learns_but_the_teacher() -> None:
    slotcon = _slotcon()
    slotcon(IMAGE, slotcon.draw(_views(), 4, Moment(0, 0, 1))).loss.backward()
    teacher = {id(value) for value in slotcon.teacher.parameters()}
    for name, value in slotcon.named_parameters():
        if id(value) in teacher:
            assert value.grad is None
            assert not value.requires_grad
        else:
            assert value.grad is not None, name
            assert value.grad.isfinite().all(), name
    assert slotcon.encoder.prototypes.grad is not None
    assert slotcon.encoder.prototypes.grad.any()
    assert slotcon.encoder.backbone.get_parameter("conv1.weight").grad.any()


@pytest.mark.usefixtures("_shape")
def test_with_no_slot_in_both_views_there_is_no_slot_loss() -> None:
    slotcon = _slotcon(grouping_weight=0.0)
    _disagree(slotcon)
    measured = slotcon(IMAGE, slotcon.draw(_views(), 4, Moment(0, 0, 1)))
    measured.loss.backward()
    assert measured.loss.item() == 0
    assert all(torch.isfinite(value.grad).all() for value in slotcon.parameters() if value.grad is not None)
    assert not slotcon.predictor[1].running_mean.any()
    assert measured.instance_accuracy.item() == 0
    assert measured.alignment.item() == 2
