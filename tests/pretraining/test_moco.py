"""MoCo's equations against loops in float64, written from the papers (He et al. 2020, Wang & Isola 2020)."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.backbone.resnet import ResNet
from stages.core.step import Moment
from stages.pretraining.encoder import Encoder
from stages.pretraining.figures import alignment, uniformity
from stages.pretraining.info_nce import info_nce
from stages.pretraining.moco import MoCo
from stages.pretraining.optimizer import warmup_cosine
from stages.pretraining.views import render
from stages.settings.params import load
from tests.datasets import REPOSITORY
from tests.pretraining.drawn_views import drawn_views


def _unit(count: int, dim: int, seed: int, device: torch.device) -> torch.Tensor:
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return (values / values.norm(dim=1, keepdim=True)).to(device)


def _moco(
    queue_size: int = 6, bn_splits: int = 2, momentum: float = 0.9, head_norm: bool = True, **changes: Any
) -> MoCo:
    torch.manual_seed(0)
    encoder = Encoder(ResNet("resnet18", 8, 2), 5, head_batch_norm=head_norm)
    settings = load(REPOSITORY / "params.yaml", "pretrain").pretrain
    return MoCo(
        encoder,
        settings.model_copy(update={"projection_dim": 5, "bn_splits": bn_splits, **changes}),
        queue_size=queue_size,
        key_momentum=momentum,
        precision="float32",
        generator=torch.Generator().manual_seed(1),
    )


def _plain_info_nce(query, key, queue, temperature: float, batch_negatives: bool) -> tuple[float, float]:
    losses, right = [], 0
    for i in range(len(query)):
        others = [key[j] for j in range(len(key)) if j != i] if batch_negatives else []
        candidates = [key[i], *others, *queue]  # the first is the right one
        similarities = [sum(a * b for a, b in zip(query[i], other, strict=True)) for other in candidates]
        exponentials = [math.exp(similarity / temperature) for similarity in similarities]
        losses.append(-math.log(exponentials[0] / sum(exponentials)))
        right += all(similarities[0] >= other for other in similarities)
    return sum(losses) / len(losses), right / len(query)


@pytest.mark.parametrize("batch_negatives", [True, False])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_info_nce(seed: int, temperature: float, batch_negatives: bool, device: torch.device) -> None:
    query, key, queue = (_unit(count, 4, 10 * seed + i, device) for i, count in enumerate((5, 5, 7), start=1))
    key[0] = query[0]  # one is right for certain
    loss, accuracy, _ = info_nce(query, key, queue, temperature, batch_negatives=batch_negatives)
    expected = _plain_info_nce(
        query.double().tolist(), key.double().tolist(), queue.double().tolist(), temperature, batch_negatives
    )
    assert float(loss) == pytest.approx(expected[0], rel=1e-5)
    assert float(accuracy) == pytest.approx(expected[1])
    assert expected[1] > 0


@pytest.mark.parametrize("batch_negatives", [True, False])
@pytest.mark.parametrize("queue_size", [1, 3, 100])
def test_info_nce_cannot_tell_equal_similarities_apart(
    queue_size: int, batch_negatives: bool, device: torch.device
) -> None:
    same = _unit(1, 6, 0, device)
    query, queue = same.expand(4, -1), same.expand(queue_size, -1)
    loss, *_ = info_nce(query, query, queue, 0.2, batch_negatives=batch_negatives)
    negatives = queue_size + (3 if batch_negatives else 0)
    assert float(loss) == pytest.approx(math.log(negatives + 1), rel=1e-6)


def test_info_nce_of_opposites_is_certain(device: torch.device) -> None:
    query = _unit(3, 4, 0, device)[:1].expand(3, -1)
    loss, accuracy, _ = info_nce(query, query, -query, 0.1, batch_negatives=False)
    assert float(loss) == pytest.approx(math.log(1 + 3 * math.exp(-20)), abs=1e-7)
    assert float(accuracy) == 1
    _, accuracy, _ = info_nce(query, -query, query, 0.1, batch_negatives=False)
    assert float(accuracy) == 0


@pytest.mark.parametrize("batch_negatives", [True, False])
def test_gradient_of_info_nce(batch_negatives: bool) -> None:
    query, key, queue = (
        _unit(count, 4, seed, torch.device("cpu")).double() for seed, count in enumerate((3, 3, 5))
    )
    assert torch.autograd.gradcheck(
        lambda query: info_nce(query, key, queue, 0.3, batch_negatives=batch_negatives)[0],
        (query.requires_grad_(),),
    )


def test_momentum_update() -> None:
    moco = _moco(momentum=0.75)
    with torch.no_grad():
        for parameter in moco.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    keys = [value.detach().double().clone() for value in moco.key_encoder.parameters()]
    queries = [value.detach().double().clone() for value in moco.encoder.parameters()]
    moco.update_key_encoder()
    for updated, key, query in zip(moco.key_encoder.parameters(), keys, queries, strict=True):
        torch.testing.assert_close(updated.double(), 0.75 * key + 0.25 * query, rtol=1e-5, atol=1e-6)
    for after, before in zip(moco.encoder.parameters(), queries, strict=True):
        assert torch.equal(after.double(), before)
    assert not any(parameter.requires_grad for parameter in moco.key_encoder.parameters())


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_whole_step(symmetric: bool) -> None:
    """Loss, accuracy and queue after a step, from the embeddings: queries of one view, keys of the other."""
    moco = _moco(bn_splits=1, symmetric=symmetric, image_px=32, temperature=0.5, batch_negatives=True)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in moco.key_encoder.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    networks, queue = copy.deepcopy((moco.encoder, moco.key_encoder)), moco.queue.clone()
    image = torch.rand(4, 3, 40, 40, generator=generator)
    measured = moco(image, moco.draw(drawn_views(), 4, Moment(0, 0, 1)))
    moco.after_step()

    low, high = moco._settings.crop_area
    views = render(image, drawn_views().draw(4, (low, high), 32, 2), 32)
    queries, keys = ([net(view).embedding.detach() for view in views] for net in networks)
    results = [
        _plain_info_nce(queries[own].tolist(), keys[1 - own].tolist(), queue.tolist(), 0.5, True)
        for own in range(2 if symmetric else 1)
    ]
    loss, accuracy = (sum(one) / len(results) for one in zip(*results, strict=True))
    assert measured.loss.item() == pytest.approx(loss, rel=1e-4)
    assert float(measured.instance_accuracy) == pytest.approx(accuracy)
    torch.testing.assert_close(moco.queue, torch.cat([keys[1], queue[4:]]))
    assert int(moco.position) == 4


def test_momentum_update_has_a_fixpoint() -> None:
    moco = _moco(momentum=0.3)
    before = copy.deepcopy(list(moco.key_encoder.parameters()))
    moco.update_key_encoder()
    for updated, key in zip(moco.key_encoder.parameters(), before, strict=True):
        assert torch.equal(updated, key)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8), queue_size=st.integers(6, 9))
def test_the_queue_is_first_in_first_out_at_any_batch_size(sizes: list[int], queue_size: int) -> None:
    moco = MoCo.__new__(MoCo)
    torch.nn.Module.__init__(moco)
    moco.register_buffer("queue", torch.zeros(queue_size, 1))
    moco.register_buffer("position", torch.zeros((), dtype=torch.long))
    expected, number = [0.0] * queue_size, 0
    place = 0
    for size in sizes:
        batch = torch.arange(number + 1, number + size + 1, dtype=torch.float)[:, None]
        moco.enqueue(batch)
        for value in batch.flatten().tolist():
            expected[place] = value
            place = (place + 1) % queue_size
        number += size
    assert moco.queue.flatten().tolist() == expected
    assert int(moco.position) == place
    assert sorted(value for value in expected if value) == list(
        range(max(1, number - queue_size + 1), number + 1)
    )


def test_the_first_queue_is_of_unit_length_and_drawn_from_the_generator() -> None:
    first, second = _moco(), _moco()
    torch.testing.assert_close(first.queue.norm(dim=1), torch.ones(6))
    assert torch.equal(first.queue, second.queue)
    assert set(first.state_dict()) >= {"queue", "position"}


@pytest.mark.parametrize("head_norm", [True, False])
def test_each_group_of_queries_has_statistics_of_its_own(head_norm: bool, device: torch.device) -> None:
    moco = _moco(bn_splits=2, head_norm=head_norm).to(device).train()
    view = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3)).to(device)
    reference = _moco(bn_splits=1, head_norm=head_norm).encoder.to(device)
    expected = torch.cat([reference(view[:4]).embedding, reference(view[4:]).embedding])
    torch.testing.assert_close(moco.encoder(view).embedding, expected, rtol=0, atol=1e-6)
    together = _moco(bn_splits=1, head_norm=head_norm).encoder.to(device)(view).embedding
    assert (together - expected).abs().max() > 1e-3
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(8, device=device))


def test_keys_come_back_in_the_order_of_the_batch() -> None:
    moco = _moco(bn_splits=2).train()
    view = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    order = torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    reference = _moco(bn_splits=1).encoder
    expected = torch.zeros(8, 5)
    for group in (order[:4], order[4:]):
        for image, embedding in zip(group.tolist(), reference(view[group]).embedding, strict=True):
            expected[image] = embedding
    keys = moco.keys(view, order).embedding
    torch.testing.assert_close(keys, expected, rtol=0, atol=1e-6)
    assert not keys.requires_grad


def test_alignment_and_uniformity(device: torch.device) -> None:
    first, second = _unit(6, 3, 0, device), _unit(6, 3, 1, device)
    a, b = first.double().tolist(), second.double().tolist()

    def squared(u: list[float], v: list[float]) -> float:
        return sum((x - y) ** 2 for x, y in zip(u, v, strict=True))

    assert float(alignment(first, second)) == pytest.approx(
        sum(squared(u, v) for u, v in zip(a, b, strict=True)) / 6, rel=1e-5
    )
    potentials = [math.exp(-2 * squared(a[i], a[j])) for i in range(6) for j in range(i)]
    assert float(uniformity(first)) == pytest.approx(math.log(sum(potentials) / len(potentials)), rel=1e-5)
    assert float(alignment(first, first)) == 0
    assert float(alignment(first, -first)) == pytest.approx(4, rel=1e-5)
    assert float(uniformity(first[:1].expand(4, -1))) == 0


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    factors = [warmup_cosine(step, total_steps=100, warmup_steps=10) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    for step in range(10, 101):
        assert factors[step] == pytest.approx(math.cos(math.pi * (step - 10) / 180) ** 2)


def test_without_warmup_the_learning_rate_starts_at_the_top() -> None:
    assert warmup_cosine(0, total_steps=7, warmup_steps=0) == 1
    assert 0 < warmup_cosine(6, total_steps=7, warmup_steps=0) < 0.1
    assert warmup_cosine(0, total_steps=1, warmup_steps=1) == 1
