"""DenseCL's equations and a whole step against loops in float64 (Wang et al., 2021)."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from stages.backbone.resnet import ResNet
from stages.core.step import Drawn, Moment
from stages.pretraining.densecl import DenseCL, dense_info_nce, matched, nearest_cells
from stages.pretraining.encoder import DenseEncoder, dilate
from stages.pretraining.views import Views, render
from stages.settings.params import load
from tests.datasets import REPOSITORY

Plain = list[float]


def _unit(*shape: int, seed: int, device: torch.device | None = None) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values, dim=-1).to(device)


def _dot(first: Plain, second: Plain) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def _cross_entropy(similarities: Plain, temperature: float) -> float:
    """Of the first of them."""
    exponentials = [math.exp(value / temperature) for value in similarities]
    return -math.log(exponentials[0] / sum(exponentials))


@pytest.mark.parametrize("batch_negatives", [True, False])
@pytest.mark.parametrize("start", [0, 2])
def test_dense_info_nce(start: int, batch_negatives: bool, device: torch.device) -> None:
    query, positive = (_unit(3, 4, 5, seed=seed, device=device) for seed in (0, 1))
    pooled, queue = _unit(6, 5, seed=2, device=device), _unit(7, 5, seed=3, device=device)
    found = dense_info_nce(query, positive, pooled, queue, 0.2, batch_negatives=batch_negatives, start=start)
    q, p, mean, past = (value.double().tolist() for value in (query, positive, pooled, queue))
    losses = []
    for image in range(3):
        for cell in range(4):
            others = [row for place, row in enumerate(mean) if batch_negatives and place != start + image]
            candidates = [p[image][cell], *others, *past]
            losses.append(_cross_entropy([_dot(q[image][cell], other) for other in candidates], 0.2))
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("batch_negatives", [True, False])
def test_gradient_of_dense_info_nce(batch_negatives: bool) -> None:
    query, positive = (_unit(2, 3, 4, seed=seed).double() for seed in (0, 1))
    pooled, queue = _unit(2, 4, seed=2).double(), _unit(3, 4, seed=3).double()
    assert torch.autograd.gradcheck(
        lambda query: dense_info_nce(query, positive, pooled, queue, 0.3, batch_negatives=batch_negatives),
        (query.requires_grad_(),),
    )


def test_a_cell_is_matched_with_the_nearest_of_its_own_image(device: torch.device) -> None:
    query, key = _unit(3, 6, 4, seed=0, device=device), _unit(3, 6, 4, seed=1, device=device)
    found = matched(key, nearest_cells(query, key)).cpu()
    for image in range(3):
        for cell in range(6):
            cosines = [_dot(query[image, cell].tolist(), other.tolist()) for other in key[image]]
            torch.testing.assert_close(found[image, cell], key[image, cosines.index(max(cosines))].cpu())


def test_cells_of_a_view_match_themselves_and_those_of_a_shuffled_view_their_new_places() -> None:
    cells = _unit(2, 9, 8, seed=0)
    assert nearest_cells(cells, cells).tolist() == [list(range(9))] * 2
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert nearest_cells(cells, cells[:, order]).tolist() == [torch.argsort(order).tolist()] * 2


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_every_second_cell_of_a_dilated_map_is_a_cell_of_the_plain_one(arch: str) -> None:
    torch.manual_seed(0)
    plain = ResNet(arch, 4, 2).double().eval()
    dilated = copy.deepcopy(plain)
    dilate(dilated)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    large, small = dilated(image), plain(image)
    assert large.layer4.shape[2:] == (8, 8)
    torch.testing.assert_close(large.layer4[:, :, ::2, ::2], small.layer4)
    torch.testing.assert_close(large.layer3, small.layer3)
    assert dilated.state_dict().keys() == plain.state_dict().keys()


def _densecl(weight: float = 0.3, warmup_epochs: float = 0.0) -> DenseCL:
    torch.manual_seed(0)
    encoder = DenseEncoder(ResNet("resnet18", 8, 2), 5, head_batch_norm=True)
    dilate(encoder.backbone)
    settings = load(REPOSITORY / "params.yaml", "pretrain").pretrain
    update = {"projection_dim": 5, "bn_splits": 1, "symmetric": False, "batch_size": 3}
    update["dense"] = settings.dense.model_copy(update={"image_px": 24})
    update["densecl"] = settings.densecl.model_copy(update={"weight": weight, "warmup_epochs": warmup_epochs})
    return DenseCL(
        encoder,
        settings.model_copy(update=update),
        queue_size=6,
        key_momentum=0.75,
        precision="float32",
        generator=torch.Generator().manual_seed(1),
    )


def _views() -> Views:
    photometric = load(REPOSITORY / "params.yaml", "pretrain").pretrain.photometric
    return Views(photometric, 0.75, torch.Generator().manual_seed(5))


def _drawn(densecl: DenseCL, epoch: int) -> Drawn:
    return densecl.draw(_views(), 3, Moment(epoch, 0, 1))


IMAGE = torch.rand(3, 3, 30, 30, generator=torch.Generator().manual_seed(4))


def test_a_whole_step() -> None:
    """Loss, both queues and the key encoder after one step, from the outputs of the networks."""
    densecl = _densecl()
    encoder, key_encoder = copy.deepcopy(densecl.encoder), copy.deepcopy(densecl.key_encoder)
    queue, dense_queue = (value.double().tolist() for value in (densecl.queue, densecl.dense_queue))
    measured = densecl(IMAGE, _drawn(densecl, 0))
    measured.loss.backward()
    with torch.no_grad():
        next(densecl.encoder.parameters()).add_(1.0)
    densecl.after_step()

    views = _views()
    area = tuple(densecl._settings.crop_area)
    first, second = (render(IMAGE, views.draw(3, area, 24, 1), 24)[0] for _ in range(2))
    query, key = encoder(first), key_encoder(second)
    temperature = densecl._settings.temperature
    losses, dense_losses, pooled = [], [], []
    maps = [side.backbone(view).layer4 for side, view in ((encoder, first), (key_encoder, second))]
    dense = [side.dense_head(one) for side, one in zip((encoder, key_encoder), maps, strict=True)]
    features = [F.normalize(one.double(), dim=1).flatten(2) for one in maps]
    cells = [F.normalize(one.double(), dim=1).flatten(2) for one in dense]
    means = F.normalize(dense[1].double().mean((2, 3)), dim=1).tolist()
    for image in range(3):
        keys = [key.embedding[image], *(key.embedding[other] for other in range(3) if other != image)]
        candidates = [one.double().tolist() for one in keys] + queue
        own = query.embedding[image].double().tolist()
        losses.append(_cross_entropy([_dot(own, other) for other in candidates], temperature))
        pooled.append(means[image])
        for cell in range(9):
            cosines = [
                _dot(features[0][image, :, cell].tolist(), features[1][image, :, other].tolist())
                for other in range(9)
            ]
            positive = cells[1][image, :, cosines.index(max(cosines))].tolist()
            others = [means[other] for other in range(3) if other != image]
            own = cells[0][image, :, cell].tolist()
            similarities = [_dot(own, other) for other in [positive, *others, *dense_queue]]
            dense_losses.append(_cross_entropy(similarities, temperature))
    expected = 0.7 * sum(losses) / 3 + 0.3 * sum(dense_losses) / 27
    assert measured.loss.item() == pytest.approx(expected, rel=1e-4)
    assert densecl.expected.num_candidates == 1 + 2 + 6
    torch.testing.assert_close(densecl.queue[:3], key.embedding)
    torch.testing.assert_close(densecl.dense_queue[:3], torch.tensor(pooled), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(densecl.dense_queue[3:], torch.tensor(dense_queue[3:]))
    assert int(densecl.position) == 3
    before, moved = next(key_encoder.parameters()), next(densecl.key_encoder.parameters())
    torch.testing.assert_close(moved, before + 0.25)


def test_every_part_learns_but_the_keys() -> None:
    densecl = _densecl()
    densecl(IMAGE, _drawn(densecl, 0)).loss.backward()
    assert all(value.grad is not None and value.grad.any() for value in densecl.encoder.parameters())
    assert all(value.grad is None for value in densecl.key_encoder.parameters())


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.0), (1, 0.5), (2, 1.0), (9, 1.0)])
def test_the_weight_of_cells_rises_over_the_warmup(epoch: int, share: float) -> None:
    losses = {}
    for weight in (0.0, 0.6):
        densecl = _densecl(weight, warmup_epochs=2.0)
        losses[weight] = densecl(IMAGE, _drawn(densecl, epoch)).loss.item()
    densecl = _densecl(1.0)
    whole = densecl(IMAGE, _drawn(densecl, 0)).loss.item()
    expected = losses[0.0] + 0.6 * share * (whole - losses[0.0])
    assert losses[0.6] == pytest.approx(expected, rel=1e-5)
