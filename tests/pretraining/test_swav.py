"""SwAV's equations against loops in float64 (Caron et al., 2020), and LARS (You et al., 2017)."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from stages.backbone.resnet import ResNet
from stages.core.step import Moment
from stages.pretraining.encoder import MultiCropEncoder
from stages.pretraining.optimizer import LARS, SGD, build_optimizer
from stages.pretraining.swav import SwAV, sinkhorn, swapped_prediction
from stages.pretraining.views import Views, render
from stages.settings.params import load
from tests.datasets import REPOSITORY
from tests.pretraining.drawn_views import drawn_views


def _scores(count: int, prototypes: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, prototypes, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _plain_sinkhorn(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """Algorithm 1's normalisation, on probabilities: columns to 1 / P, rows to 1 / N."""
    mass = [[math.exp(score / epsilon) for score in row] for row in scores]
    num_images, num_prototypes = len(mass), len(mass[0])
    for _ in range(iterations):
        for j in range(num_prototypes):
            column = sum(row[j] for row in mass)
            for row in mass:
                row[j] /= column * num_prototypes
        for row in mass:
            whole = sum(row)
            row[:] = [value / (whole * num_images) for value in row]
    return [[value * num_images for value in row] for row in mass]


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("epsilon", [0.03, 0.05, 1.0])
def test_sinkhorn(epsilon: float, iterations: int, device: torch.device) -> None:
    scores = _scores(7, 4).to(device)
    expected = torch.tensor(_plain_sinkhorn(scores.double().tolist(), epsilon, iterations))
    codes = sinkhorn(scores, epsilon, iterations).cpu()
    torch.testing.assert_close(codes, expected, rtol=1e-4, atol=1e-6)


def test_codes_are_distributions_that_use_all_prototypes_alike() -> None:
    codes = sinkhorn(_scores(60, 6), 0.05, 100).double()
    torch.testing.assert_close(codes.sum(1), torch.ones(60).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(codes.sum(0), torch.full((6,), 10.0).double(), rtol=1e-3, atol=0)


def test_sinkhorn_survives_an_epsilon_at_which_exp_would_overflow() -> None:
    codes = sinkhorn(_scores(8, 4), 1e-3, 3)  # exp(1000) is no float32
    assert torch.isfinite(codes).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(8))


def _plain_swapped_prediction(logits: torch.Tensor, codes: torch.Tensor) -> float:
    """Each of the two codes against the predictions of all other views (Eq. 2, 6)."""
    terms = []
    for coded in range(2):
        for predicting in range(logits.shape[1]):
            if coded == predicting:
                continue
            for image in range(len(logits)):
                values = logits[image, predicting].double().tolist()
                log_sum = math.log(sum(math.exp(value) for value in values))
                code = codes[image, coded].tolist()
                terms.append(-sum(c * (v - log_sum) for c, v in zip(code, values, strict=True)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("num_views", [2, 5])
def test_swapped_prediction(num_views: int, device: torch.device) -> None:
    logits = torch.stack([_scores(3, 4, seed) for seed in range(num_views)], 1).to(device) * 5
    codes = torch.stack([sinkhorn(_scores(3, 4, 10 + seed), 0.1, 3) for seed in range(2)], 1).to(device)
    assert float(swapped_prediction(logits, codes)) == pytest.approx(
        _plain_swapped_prediction(logits, codes), rel=1e-5
    )


def test_equal_scores_have_the_loss_of_chance() -> None:
    codes = sinkhorn(_scores(3, 9), 0.05, 3).expand(2, -1, -1).transpose(0, 1)
    assert float(swapped_prediction(torch.zeros(3, 4, 9), codes)) == pytest.approx(math.log(9), rel=1e-6)


def _swav(**changes: object) -> SwAV:
    torch.manual_seed(0)
    settings = load(REPOSITORY / "params.yaml", "pretrain").pretrain
    own = {"num_prototypes": 6, "local_crops": 1, "local_px": 16, "queue_size": 8, "queue_from_epoch": 2}
    update = {"projection_dim": 5, "image_px": 16, "batch_size": 4, "bn_splits": 1}
    update["swav"] = settings.swav.model_copy(update={**own, "freeze_epochs": 1, **changes})
    encoder = MultiCropEncoder(ResNet("resnet18", 8, 2), 5, head_batch_norm=True)
    return SwAV(encoder, settings.model_copy(update=update), precision="float32")


def _step(swav: SwAV, epoch: int) -> None:
    generator = torch.Generator().manual_seed(epoch)
    photometric = load(REPOSITORY / "params.yaml", "pretrain").pretrain.photometric
    image = torch.rand(4, 3, 20, 20, generator=generator)
    swav.zero_grad()
    drawn = swav.draw(Views(photometric, 0.75, generator), 4, Moment(epoch, 0, 1))
    swav(image, drawn).loss.backward()
    swav.after_step()


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_whole_step(epoch: int) -> None:
    """Loss and queue after a step, from the embeddings of all views; epoch 2 is the first with the queue."""
    swav = _swav(local_crops=2, local_px=8, epsilon=0.1, local_area=[0.05, 0.2])
    rng = torch.Generator().manual_seed(4)
    image = torch.rand(4, 3, 40, 40, generator=rng)
    swav.queue.copy_(F.normalize(torch.randn(2, 8, 5, generator=rng), dim=2))
    encoder, queue, own = copy.deepcopy(swav.encoder), swav.queue.clone(), swav._settings.swav
    measured = swav(image, swav.draw(drawn_views(), 4, Moment(epoch, 0, 1)))
    swav.after_step()

    views = drawn_views()
    shown = [
        render(image, views.draw(4, (low, high), side, 2), side).transpose(0, 1)
        for (low, high), side in ((own.crop_area, 16), (own.local_area, 8))
    ]
    embedding = encoder(*shown).embedding.detach().view(4, 4, 5)  # of each image the large views come first
    prototypes = F.normalize(swav.prototypes.weight.detach(), dim=1)
    codes = []
    for view in range(2):
        known = [*queue[view], *embedding[:, view]] if epoch == 2 else [*embedding[:, view]]
        scores = [[float(one @ prototype) for prototype in prototypes] for one in known]
        codes.append(torch.tensor(_plain_sinkhorn(scores, own.epsilon, own.sinkhorn_iterations)[-4:]))
        torch.testing.assert_close(swav.queue[view], torch.cat([queue[view, 4:], embedding[:, view]]))
    logits = embedding @ prototypes.T / own.temperature
    expected = _plain_swapped_prediction(logits, torch.stack(codes, 1))
    assert measured.loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_batch_norm_of_the_head_sees_the_views_of_all_sizes_at_once() -> None:
    """SwAV's code: the trunk takes one batch for each size, the head one of all."""
    swav = _swav()
    trunk, (first, norm, _, last) = swav.encoder.backbone, swav.encoder.head
    rng = torch.Generator().manual_seed(0)
    large, small = (torch.randn(3, count, 3, side, side, generator=rng) for count, side in ((2, 16), (4, 8)))
    features = [trunk.global_feature(one.flatten(0, 1)) for one in (large, small)]
    hidden = [torch.nn.functional.linear(one, first.weight) for one in features]
    of_all = torch.cat(hidden)
    mean, variance = of_all.mean(0), of_all.var(0, unbiased=False)
    scaled = [
        ((one - mean) / (variance + norm.eps).sqrt()).relu() @ last.weight.T + last.bias for one in hidden
    ]
    per_image = [one.view(3, -1, 5) for one in scaled]
    expected = torch.nn.functional.normalize(torch.cat(per_image, 1), dim=2)
    found = swav.encoder(large, small)
    torch.testing.assert_close(found.embedding.view(3, 6, 5), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    assert found.feature.view(3, 6, -1).shape[2] == features[0].shape[1]


def test_prototypes_are_frozen_at_first_and_of_unit_length_always() -> None:
    swav = _swav()
    _step(swav, 0)
    assert swav.prototypes.weight.grad is None
    with torch.no_grad():
        swav.prototypes.weight.mul_(3)
    _step(swav, 1)
    assert swav.prototypes.weight.grad is not None
    torch.testing.assert_close(swav.prototypes.weight.norm(dim=1), torch.ones(6))


def test_the_queue_comes_late_and_never_half_full() -> None:
    """Of 8 embeddings in batches of 4, from epoch 2 on."""
    swav = _swav()
    photometric = load(REPOSITORY / "params.yaml", "pretrain").pretrain.photometric

    def phase(epoch: int, step: int, num_steps: int) -> tuple[bool, ...]:
        views = Views(photometric, 0.75, torch.Generator().manual_seed(0))
        return swav.draw(views, 4, Moment(epoch, step, num_steps)).phase

    assert [phase(epoch, 0, 1)[1] for epoch in range(4)] == [False, False, True, True]
    assert [phase(1, step, 5)[1] for step in range(5)] == [False] * 5
    swav = _swav(queue_from_epoch=0)
    assert [phase(0, step, 5)[1] for step in range(5)] == [False, False, True, True, True]
    swav = _swav(queue_size=0, queue_from_epoch=0)
    assert not phase(9, 0, 1)[1]


def test_codes_with_the_queue_differ() -> None:
    swav = _swav()
    batch = torch.nn.functional.normalize(torch.randn(2, 4, 5), dim=2)
    alone = sinkhorn(batch[0] @ swav.prototypes.weight.T, swav._own.epsilon, 3)
    torch.testing.assert_close(swav._codes(batch, has_queue=False)[0], alone)
    for epoch in range(2):
        _step(swav, epoch)
    assert not torch.allclose(swav._codes(batch, has_queue=True)[0], alone)


def test_the_queue_is_first_in_first_out() -> None:
    swav = _swav()
    for number in range(3):
        swav._newest = torch.full((2, 4, 5), float(number))
        swav.after_step()
    assert swav.queue[:, :, 0].tolist() == [[1, 1, 1, 1, 2, 2, 2, 2]] * 2


def test_usage_of_the_prototypes() -> None:
    swav = _swav()
    swav.assigned.copy_(torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0, 0.0]))
    assert swav.take_usage() == pytest.approx(0.5)
    assert float(swav.assigned.sum()) == 0


def test_a_view_uses_its_nearest_prototype_however_soft_the_prediction() -> None:
    swav = _swav()
    logits = torch.full((3, 2, 6), 0.1)
    logits[:, 0, 1] = 0.11
    logits[:, 1, 4] = 0.12
    swav._count(logits)
    assert swav.assigned.tolist() == [0, 3, 0, 0, 3, 0]
    assert swav.take_usage() == pytest.approx(2 / 6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_gives_what_torch_gives_also_for_weights_that_are_frozen_at_first(decay: float) -> None:
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=rng), torch.randn(5, generator=rng)]
    pairs = [[value.clone().requires_grad_() for value in start] for _ in range(2)]
    own = SGD([{"params": pairs[0], "weight_decay": decay}], lr=0.0, momentum=0.9)
    rate = own.param_groups[0]["lr"] = torch.zeros(())
    torchs = torch.optim.SGD(pairs[1], lr=0.0, momentum=0.9, weight_decay=decay)
    for step in range(4):
        rate.fill_(0.5 / (step + 1))
        torchs.param_groups[0]["lr"] = 0.5 / (step + 1)
        for first, second in zip(*pairs, strict=True):
            is_frozen = first.ndim > 1 and step < 2
            first.grad = None if is_frozen else torch.randn(first.shape, generator=rng)
            second.grad = None if first.grad is None else first.grad.clone()
        own.step()
        torchs.step()
    torch.testing.assert_close(pairs[0], pairs[1], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(pairs[0][0], start[0])


def test_lars_against_its_equation() -> None:
    start = [torch.tensor([3.0, 4.0]), torch.zeros(2)]
    gradients = [torch.tensor([0.6, -0.8]), torch.tensor([1.0, 2.0])]
    weights = [value.clone().requires_grad_() for value in start]
    optimizer = LARS([{"params": weights, "weight_decay": 0.1}], lr=2.0, momentum=0.9)
    expected = [value.double() for value in start]
    velocity = [torch.zeros(2).double() for _ in start]
    for _ in range(2):
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        for i, gradient in enumerate(gradients):
            norm = float(expected[i].norm())
            scale = 0.001 * norm / (float(gradient.norm()) + 0.1 * norm) if norm else 1.0
            decayed = gradient.double() + (0.1 * expected[i] if norm else 0)
            velocity[i] = 0.9 * velocity[i] + scale * decayed
            expected[i] = expected[i] - 2.0 * velocity[i]
    for weight, value in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach().double(), value, rtol=1e-5, atol=1e-7)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("method", ["swav", "slotcon"])
def test_lars_leaves_biases_and_batch_norms_to_plain_sgd_for_slotcon(method: str) -> None:
    settings = load(REPOSITORY / "params.yaml", "pretrain").pretrain
    update = {"method": method, "optimizer": "lars", "lr": 2.0, "momentum": 0.9, "weight_decay": 0.1}
    start = [torch.tensor([[3.0, 4.0]]), torch.tensor([3.0, 4.0])]
    gradients = [torch.tensor([[0.6, -0.8]]), torch.tensor([0.6, -0.8])]
    weights = [value.clone().requires_grad_() for value in start]
    optimizer = build_optimizer(settings.model_copy(update=update), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    optimizer.step()
    # |w| = 5, |g| = 1; a bias has no decay
    steps = [0.005 / 1.5 * (gradients[0] + 0.1 * start[0]), gradients[1] * (0.005 if method == "swav" else 1)]
    for weight, value, step in zip(weights, start, steps, strict=True):
        torch.testing.assert_close(weight.detach(), value - 2 * step)
