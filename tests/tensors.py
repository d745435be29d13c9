"""Tensors of two runs against each other."""

from collections.abc import Mapping

from torch import Tensor


def assert_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """The same names, and each tensor as far from the expected one as `tolerance` of that one's length."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        difference = (found[name] - value).double().norm()
        assert difference <= tolerance * (value.double().norm() + 1e-3), name
