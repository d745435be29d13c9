"""The network around its trunk in numpy: the pyramid, its sizes, and what the context sees (4.1, 5.1)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.backbone.checkpoint import build_backbone, describe
from stages.backbone.trunk import FeatureMaps
from stages.segmenter.network import FPN
from stages.settings.params import load
from stages.train import KEYS
from stages.training.building import build_segmenter
from tests.tensors import enlarging

# Of ImageNet, as in torchvision's documentation of its models.
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def _averaging(source: int, target: int) -> np.ndarray:
    """Weights of one side: the mean over the cells of each part."""
    return np.kron(np.eye(target), np.full((1, source // target), target / source))


def _resized(feature: np.ndarray, size: Sequence[int]) -> np.ndarray:
    rows, columns = (
        enlarging(source, target) if target >= source else _averaging(source, target)
        for source, target in zip(feature.shape[2:], size, strict=True)
    )
    return np.einsum("rh,ndhw,cw->ndrc", rows, feature, columns)


def _pyramid(levels: Sequence[np.ndarray]) -> np.ndarray:
    """P_i = L_i + P_i+1, brought to its size."""
    first, *deeper = levels
    return first + _resized(_pyramid(deeper), first.shape[2:]) if deeper else first


def _plain_fpn(fpn: FPN, maps: Sequence[torch.Tensor]) -> np.ndarray:
    levels = []
    for lateral, feature_map in zip(fpn.lateral, maps, strict=True):
        weight = lateral.get_parameter("weight").detach().cpu().double().numpy()[:, :, 0, 0]
        bias = lateral.get_parameter("bias").detach().cpu().double().numpy()
        given = feature_map.detach().cpu().double().numpy()
        levels.append(np.einsum("dc,nchw->ndhw", weight, given) + bias[:, None, None])
    return _pyramid(levels)


def test_every_feature_map_has_its_part_in_the_pyramid(device: torch.device) -> None:
    torch.manual_seed(0)
    fpn = FPN((3, 4, 5, 6), 2).to(device)
    sizes = ((8, 12), (4, 6), (2, 3), (1, 2))
    maps = [torch.randn(2, 3 + level, *size).to(device) for level, size in enumerate(sizes)]
    found = fpn(FeatureMaps(*maps)).detach().cpu()
    np.testing.assert_allclose(found, _plain_fpn(fpn, maps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.feature_stride": 4},
        {"backbone.arch": "vit_small", "backbone.width": 2},
    ],
    ids=["the stride of the stem", "twice that", "patches larger than feature pixels"],
)
def test_trunk_pyramid_and_context_follow_one_another(
    changes: dict[str, Any], tiny_params: Callable[..., Path], device: torch.device
) -> None:
    """The trunk sees normalised images; the context module the colors as they are, on a coarser grid."""
    torch.manual_seed(0)
    params = load(tiny_params({"train.context.start": "random", "train.context.stride": 8, **changes}), *KEYS)
    network = build_segmenter(build_backbone(describe(params.backbone)), params, 0.0).to(device).eval()
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    normal = (image.double().numpy() - MEAN[:, None, None]) / STD[:, None, None]
    stride = params.train.feature_stride
    with torch.no_grad():
        maps = network.backbone(torch.from_numpy(normal).float().to(device))
        decoded = _resized(_plain_fpn(network.decoder, maps), (32 // stride, 48 // stride))
        assert network.context is not None
        expected = network.context(torch.from_numpy(decoded).float().to(device), image.to(device), (4, 6))
        torch.testing.assert_close(network(image.to(device)), expected, rtol=1e-4, atol=1e-4)
