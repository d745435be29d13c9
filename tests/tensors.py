"""Tensors of two runs against each other, and the weights of bilinear interpolation."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor


def assert_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """The same names, and each tensor as far from the expected one as `tolerance` of that one's length."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        difference = (found[name] - value).double().norm()
        assert difference <= tolerance * (value.double().norm() + 1e-3), name


def enlarging(source: int, target: int) -> np.ndarray:
    """Bilinear weights of one side: half-pixel centers, and the nearest cell beyond the border."""
    weight = np.zeros((target, source))
    for cell in range(target):
        place = min(max((cell + 0.5) * source / target - 0.5, 0.0), source - 1.0)
        low = int(place)
        weight[cell, low] += 1 - (place - low)
        weight[cell, min(low + 1, source - 1)] += place - low
    return weight
