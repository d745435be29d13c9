"""Pieces that the demo's objects are made of: filled polygons, each in one of four colours."""

from dataclasses import dataclass

import numpy as np

TONES = BODY, ACCENT, DARK, LIGHT = range(4)  # which of an object's four colours a part takes


@dataclass(frozen=True)
class Part:
    """One filled polygon.

    Attributes:
        outline: (x to the right, y upwards) [P, 2], in units of the object.
        tone: BODY, ACCENT, DARK or LIGHT.
    """

    outline: np.ndarray
    tone: int


def ellipse(x: float, y: float, radius_x: float, radius_y: float, tone: int) -> Part:
    """An ellipse about (x, y)."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return Part(np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], 1), tone)


def polygon(tone: int, *points: tuple[float, float]) -> Part:
    """A polygon through the points."""
    return Part(np.array(points, float), tone)


def box(left: float, bottom: float, right: float, top: float, tone: int) -> Part:
    """An upright rectangle."""
    return polygon(tone, (left, bottom), (right, bottom), (right, top), (left, top))


def limb(x0: float, y0: float, x1: float, y1: float, width: float, tone: int) -> Part:
    """A bar from one point to the other."""
    length = float(np.hypot(x1 - x0, y1 - y0))
    across_x, across_y = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    return polygon(
        tone,
        (x0 + across_x, y0 + across_y),
        (x1 + across_x, y1 + across_y),
        (x1 - across_x, y1 - across_y),
        (x0 - across_x, y0 - across_y),
    )
