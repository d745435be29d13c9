"""Class scores of a view (4.2.2): a convolution at every pixel, then pooling, in loops."""

import numpy as np
import pytest
import torch

from stages.segmenter.network import ImageHead

DIM, CLUSTERS = 4, 3


def _score_maps(head: ImageHead, feature: np.ndarray) -> np.ndarray:
    """conv(F') of one image, [K, H, W]."""
    weight = head.classify.weight.detach().double().numpy()[:, :, 0, 0]
    bias = head.classify.bias.detach().double().numpy()
    _, height, width = feature.shape
    scores = np.zeros((CLUSTERS, height, width))
    for row in range(height):
        for column in range(width):
            for cluster in range(CLUSTERS):
                scores[cluster, row, column] = bias[cluster] + sum(
                    weight[cluster, d] * feature[d, row, column] for d in range(DIM)
                )
    return scores


@pytest.mark.parametrize("kind", ["classical", "modified"])
def test_image_head(kind: str, device: torch.device) -> None:
    torch.manual_seed(0)
    head = ImageHead(DIM, CLUSTERS, kind).to(device)
    feature = 3 * torch.randn(5, DIM, 3, 2, generator=torch.Generator().manual_seed(1))
    found = head(feature.to(device)).detach().cpu().numpy()
    head.cpu()
    pooled_signs = set()
    for ours, one in zip(found, feature.double().numpy(), strict=True):
        pooled = _score_maps(head, one).mean((1, 2))
        pooled_signs |= set(np.sign(pooled).tolist())
        expected = pooled
        if kind == "modified":
            linear = head.decide[1]
            weight, bias = linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()
            expected = np.array(
                [
                    bias[k] + sum(weight[k, j] * max(0.0, pooled[j]) for j in range(CLUSTERS))
                    for k in range(CLUSTERS)
                ]
            )
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert pooled_signs == {-1.0, 1.0}, "the ReLU was not put to the test"


def test_relu_before_pooling_judges_every_pixel() -> None:
    torch.manual_seed(0)
    head = ImageHead(DIM, CLUSTERS, "relu_gap_fc")
    feature = 3 * torch.randn(5, DIM, 3, 2, generator=torch.Generator().manual_seed(1))
    linear = head.decide[1]
    weight, bias = linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()
    found = head(feature).detach().numpy()
    for ours, one in zip(found, feature.double().numpy(), strict=True):
        judged = np.maximum(_score_maps(head, one), 0).mean((1, 2))
        np.testing.assert_allclose(ours, bias + weight @ judged, atol=1e-5)


def test_a_hidden_layer_as_wide_as_the_feature_map() -> None:
    torch.manual_seed(0)
    head = ImageHead(DIM, CLUSTERS, "mlp")
    feature = 3 * torch.randn(5, DIM, 3, 2, generator=torch.Generator().manual_seed(1))
    pooled = feature.double().numpy().mean((2, 3))
    layers = [
        (
            layer.weight.detach().double().numpy().reshape(len(layer.weight), -1),
            layer.bias.detach().double().numpy(),
        )
        for layer in (head.classify, head.decide[1])
    ]
    (first, first_bias), (second, second_bias) = layers
    hidden = np.maximum(pooled @ first.T + first_bias, 0)
    np.testing.assert_allclose(head(feature).detach().numpy(), hidden @ second.T + second_bias, atol=1e-5)
    assert first.shape == (DIM, DIM)


def test_the_modified_head_has_a_linear_layer_more() -> None:
    def shapes(kind: str) -> list[tuple[int, ...]]:
        return [tuple(value.shape) for value in ImageHead(DIM, CLUSTERS, kind).parameters()]

    assert shapes("classical") == [(CLUSTERS, DIM, 1, 1), (CLUSTERS,)]
    assert shapes("modified") == [(CLUSTERS, DIM, 1, 1), (CLUSTERS,), (CLUSTERS, CLUSTERS), (CLUSTERS,)]


@pytest.mark.parametrize("kind", ["classical", "modified"])
def test_gradients_reach_every_pixel_alike(kind: str) -> None:
    torch.manual_seed(0)
    head = ImageHead(DIM, CLUSTERS, kind)
    torch.nn.init.ones_(head.classify.weight)  # so that no ReLU is dead
    feature = torch.rand(1, DIM, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(head(feature)[0, 0], feature)
    torch.testing.assert_close(gradient, gradient[:, :, :1, :1].expand_as(gradient))
    assert gradient.abs().max() > 0
