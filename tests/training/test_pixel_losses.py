"""Eq. 1 to 4 and Eq. 6 against loops in float64."""

import math

import numpy as np
import pytest
import torch

from stages.segmenter.pixels import Pixels, assign_pixels, pixel_logits
from stages.training.losses import ViewClusters, cluster_weights, guidance_loss, pixel_loss, siamese_loss

NUM, DIM, SIDE, CLUSTERS = 2, 4, 3, 5


def _unit(*shape: int, seed: int, dim: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values / values.norm(dim=dim, keepdim=True)


def _view(seed: int) -> tuple[torch.Tensor, torch.Tensor, ViewClusters]:
    generator = torch.Generator().manual_seed(100 + seed)
    feature = _unit(NUM, DIM, SIDE, SIDE, seed=seed, dim=1)
    target = torch.randint(CLUSTERS, (NUM, SIDE, SIDE), generator=generator)
    weight = torch.rand(CLUSTERS, generator=generator) + 0.1
    return feature, target, ViewClusters(_unit(CLUSTERS, DIM, seed=50 + seed, dim=1), weight)


def _plain(feature, target, centroids, weight, temperature: float) -> float:
    """Weighted mean of -log softmax(cos / temperature) over all pixels (Eq. 4)."""
    total, weights = 0.0, 0.0
    for n in range(NUM):
        for row in range(SIDE):
            for column in range(SIDE):
                z = feature[n, :, row, column]
                cosines = [
                    float(np.dot(z, mu) / (np.linalg.norm(z) * np.linalg.norm(mu))) for mu in centroids
                ]
                y = int(target[n, row, column])
                log_sum = math.log(sum(math.exp(cosine / temperature) for cosine in cosines))
                total += float(weight[y]) * (log_sum - cosines[y] / temperature)
                weights += float(weight[y])
    return total / weights


def _plain_of(feature, target, clusters: ViewClusters, temperature: float) -> float:
    return _plain(
        feature.double().numpy(),
        target.numpy(),
        clusters.centroids.double().numpy(),
        clusters.weight.double().numpy(),
        temperature,
    )


def _units(feature: torch.Tensor) -> Pixels:
    return Pixels.of_map(feature, is_unit=True)


def _loss(feature, target, clusters: ViewClusters, temperature: float) -> torch.Tensor:
    logits = pixel_logits(_units(feature), clusters.centroids, "dot")
    return pixel_loss(logits, target, clusters.weight, temperature)


def _to(clusters: ViewClusters, device: torch.device) -> ViewClusters:
    return ViewClusters(*(part.to(device) for part in clusters))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_pixel_loss(seed: int, temperature: float, device: torch.device) -> None:
    feature, target, clusters = _view(seed)
    found = _loss(feature.to(device), target.to(device), _to(clusters, device), temperature)
    assert float(found) == pytest.approx(_plain_of(feature, target, clusters, temperature), rel=1e-5)


def test_pixel_loss_of_equal_centroids_is_chance() -> None:
    feature, target, clusters = _view(0)
    same = clusters._replace(centroids=clusters.centroids[:1].expand(CLUSTERS, -1))
    assert float(_loss(feature, target, same, 0.3)) == pytest.approx(math.log(CLUSTERS), rel=1e-6)


def test_pixel_loss_gradient() -> None:
    feature, target, clusters = _view(0)
    double = ViewClusters(*(part.double() for part in clusters))
    feature = feature.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: _loss(z, target, double, 0.5), (feature,))


@pytest.mark.parametrize("cross_weight", [0.0, 0.25, 0.5, 1.0])
def test_siamese_loss(cross_weight: float, device: torch.device) -> None:
    (z1, y1, first), (z2, y2, second) = _view(0), _view(1)
    whole, within, cross = siamese_loss(
        (_units(z1.to(device)), _units(z2.to(device))),
        (y1.to(device), y2.to(device)),
        (_to(first, device), _to(second, device)),
        temperature=0.7,
        cross_weight=cross_weight,
        metric="dot",
    )
    # Eq. 2: each view to its own clusters. Eq. 3: each view's features to the other's labels and centres.
    expected_within = (_plain_of(z1, y1, first, 0.7) + _plain_of(z2, y2, second, 0.7)) / 2
    expected_cross = (_plain_of(z1, y2, second, 0.7) + _plain_of(z2, y1, first, 0.7)) / 2
    assert float(within) == pytest.approx(expected_within, rel=1e-5)
    assert float(cross) == pytest.approx(expected_cross, rel=1e-5)
    assert float(whole) == pytest.approx(
        (1 - cross_weight) * expected_within + cross_weight * expected_cross, rel=1e-5
    )
    assert abs(expected_within - expected_cross) > 1e-3


def test_siamese_loss_gradient() -> None:
    (z1, y1, first), (z2, y2, second) = _view(2), _view(3)
    clusters = tuple(ViewClusters(*(part.double() for part in view)) for view in (first, second))

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pixels, targets, settings = (
            (_units(a), _units(b)),
            (y1, y2),
            {"temperature": 0.5, "cross_weight": 0.3},
        )
        return siamese_loss(pixels, targets, clusters, metric="dot", **settings)[0]

    assert torch.autograd.gradcheck(loss, (z1.double().requires_grad_(), z2.double().requires_grad_()))


def test_assign_pixels(device: torch.device) -> None:
    feature, _, clusters = _view(4)
    found = assign_pixels(_units(feature.to(device)), clusters.centroids.to(device), "dot").cpu()
    z, centroids = feature.double().numpy(), clusters.centroids.double().numpy()
    for n in range(NUM):
        for row in range(SIDE):
            for column in range(SIDE):
                cosines = [float(np.dot(z[n, :, row, column], mu)) for mu in centroids]
                assert int(found[n, row, column]) == cosines.index(max(cosines))


def test_assign_pixels_gives_a_tie_to_the_lower_cluster() -> None:
    feature = torch.zeros(1, 2, 1, 1)
    feature[0, 0] = 1
    centroids = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert assign_pixels(_units(feature), centroids, "dot").tolist() == [[[1]]]


def test_cluster_weights() -> None:
    members = torch.tensor([6, 3, 0, 1])
    counts = [6.0, 3.0, 1.0, 1.0]  # an empty cluster counts as one pixel
    assert cluster_weights(members, "none").tolist() == [1, 1, 1, 1]
    mean = sum(counts) / 4
    assert cluster_weights(members, "frequency").tolist() == pytest.approx([count / mean for count in counts])
    inverse = [1 / count for count in counts]
    mean = sum(inverse) / 4
    assert cluster_weights(members, "inverse").tolist() == pytest.approx([value / mean for value in inverse])


@pytest.mark.parametrize("balance", ["none", "frequency", "inverse"])
def test_cluster_weights_have_mean_one(balance: str) -> None:
    members = torch.tensor([30, 0, 1, 7, 50, 2, 0, 11, 99])
    weight = cluster_weights(members, balance)
    assert weight.shape == (9,)
    assert float(weight.mean()) == pytest.approx(1, rel=1e-6)
    assert (weight > 0).all()


def test_guidance_loss(device: torch.device) -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, 3, 0, 1])
    loss, accuracy = guidance_loss(logits.to(device), label.to(device), torch.ones(4, device=device))
    total, right = 0.0, 0
    for scores, y in zip(logits.double().tolist(), label.tolist(), strict=True):
        total -= math.log(math.exp(scores[y]) / sum(math.exp(score) for score in scores))
        right += scores.index(max(scores)) == y
    assert float(loss) == pytest.approx(total / 6, rel=1e-5)
    assert float(accuracy) == pytest.approx(right / 6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_guidance_loss_is_torchs_and_asks_a_gpu_for_no_number(smoothing: float, device: torch.device) -> None:
    """torch's mean with smoothing selects labels, for which it waits; under a dispatch mode it does not."""
    generator = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(6, 4, generator=generator), torch.rand(4, generator=generator)
    label = torch.tensor([0, 1, 2, 3, 0, 1])
    expected = torch.nn.functional.cross_entropy(logits, label, weight, label_smoothing=smoothing)
    given = [one.to(device) for one in (logits, label, weight)]
    with torch.autograd.profiler.profile() as profile:
        loss, _ = guidance_loss(*given, smoothing)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    called = {event.name for event in profile.function_events}
    assert "aten::nll_loss_forward" in called
    assert not called & {"aten::masked_select", "aten::nonzero", "aten::item"}


def test_guidance_loss_gradient() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label, weight = torch.tensor([2, 0, 3]), torch.ones(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: guidance_loss(x, label, weight)[0], (logits.requires_grad_(),))


@pytest.mark.parametrize("is_unit", [True, False])
@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_pixel_logits(metric: str, is_unit: bool, device: torch.device) -> None:
    """Up to what is the same for all centroids; neither features nor centroids come as units."""
    feature = torch.randn(NUM, DIM, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    centroids = 2 * torch.randn(CLUSTERS, DIM, generator=torch.Generator().manual_seed(1))
    pixels = Pixels.of_map(feature.to(device), is_unit=is_unit)
    found = pixel_logits(pixels, centroids.to(device), metric).cpu().double().numpy()
    z, mu = feature.double().numpy(), centroids.double().numpy()
    for n in range(NUM):
        for row in range(SIDE):
            for column in range(SIDE):
                pixel = z[n, :, row, column]
                pixel = pixel / np.linalg.norm(pixel) if is_unit else pixel
                plain = [
                    float(np.dot(pixel, one)) if metric == "dot" else -float(((pixel - one) ** 2).sum())
                    for one in mu
                ]
                offset = 0 if metric == "dot" else float((pixel**2).sum())
                np.testing.assert_allclose(found[n, row, column], np.array(plain) + offset, atol=1e-4)
    nearest = assign_pixels(pixels, centroids.to(device), metric).cpu()
    assert torch.equal(nearest, torch.from_numpy(found.argmax(-1)))
    other = {"dot": "euclidean", "euclidean": "dot"}[metric]
    assert not torch.equal(nearest, assign_pixels(pixels, centroids.to(device), other).cpu())


@pytest.mark.parametrize("is_unit", [True, False])
def test_values_of_pixels(is_unit: bool, device: torch.device) -> None:
    feature = torch.randn(NUM, DIM, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    pixels = Pixels.of_map(feature.to(device), is_unit=is_unit)
    expected = feature.double().numpy().transpose(0, 2, 3, 1).reshape(NUM, -1, DIM)
    if is_unit:
        expected = expected / np.linalg.norm(expected, axis=2, keepdims=True)
    np.testing.assert_allclose(pixels.all().cpu(), expected.reshape(-1, DIM), rtol=1e-5)
    places = torch.tensor([[0, 5], [8, 2]], device=device)
    chosen = np.stack([expected[0, [0, 5]], expected[1, [8, 2]]])
    np.testing.assert_allclose(pixels.at(places).cpu(), chosen, rtol=1e-5)


@pytest.mark.parametrize("is_unit", [True, False])
@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_gradient_of_the_pixel_loss(metric: str, is_unit: bool) -> None:
    feature = torch.randn(1, DIM, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, target, clusters = _view(3)
    centroids, weight = clusters.centroids.double(), clusters.weight.double()

    def loss(value: torch.Tensor) -> torch.Tensor:
        logits = pixel_logits(Pixels.of_map(value, is_unit=is_unit), centroids, metric)
        return pixel_loss(logits, target[:1, :2, :2], weight, 0.3)

    assert torch.autograd.gradcheck(loss, (feature.requires_grad_(),))


def test_guidance_loss_with_weights_and_smoothing() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    label, weight = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0.5, 2.0, 1.0, 0.5]).double()
    smoothing, total, weights = 0.2, 0.0, 0.0
    for scores, y in zip(logits.tolist(), label.tolist(), strict=True):
        log_probability = [score - math.log(sum(map(math.exp, scores))) for score in scores]
        for k in range(4):
            share = (1 - smoothing) * (k == y) + smoothing / 4
            total -= share * float(weight[k]) * log_probability[k]
        weights += float(weight[y])
    loss, _ = guidance_loss(logits, label, weight, smoothing)
    assert float(loss) == pytest.approx(total / weights, rel=1e-6)
    assert torch.autograd.gradcheck(
        lambda values: guidance_loss(values, label, weight, smoothing)[0], (logits.requires_grad_(),)
    )
