"""Shapes of the thing classes of the demo: several designs per class, each of a few solid parts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TONES = COVER, DARK, LIGHT = range(3)  # COVER has the pattern of the class (covers.py), the others one color


@dataclass(frozen=True)
class Part:
    """One filled polygon.

    Attributes:
        outline: vertices (x to the right, y upward) [P, 2], in object units.
        tone: COVER, DARK or LIGHT.
    """

    outline: np.ndarray
    tone: int


def ellipse(x: float, y: float, radius_x: float, radius_y: float, tone: int) -> Part:
    """Build an ellipse centered at (x, y)."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return Part(np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], 1), tone)


def polygon(tone: int, *points: tuple[float, float]) -> Part:
    """Build a polygon through the points."""
    return Part(np.array(points, float), tone)


def box(left: float, bottom: float, right: float, top: float, tone: int) -> Part:
    """Build an axis-aligned rectangle."""
    return polygon(tone, (left, bottom), (right, bottom), (right, top), (left, top))


def limb(x0: float, y0: float, x1: float, y1: float, width: float, tone: int) -> Part:
    """Build a bar between two points."""
    length = float(np.hypot(x1 - x0, y1 - y0))
    across_x, across_y = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    return polygon(
        tone,
        (x0 + across_x, y0 + across_y),
        (x1 + across_x, y1 + across_y),
        (x1 - across_x, y1 - across_y),
        (x0 - across_x, y0 - across_y),
    )


Design = Callable[[np.random.Generator], list[Part]]


def cow(rng: np.random.Generator) -> list[Part]:
    """Draw a cow: four legs, a body, a neck and a head with an ear."""
    legs, girth = rng.uniform(0.2, 0.28), rng.uniform(0.25, 0.3)
    neck, lean = rng.uniform(0.05, 0.2), rng.uniform(0.08, 0.14)
    height = legs + girth * 0.9
    head_x, head_y = 0.32 + lean, height + 0.1 + neck
    return [
        *(limb(x, height, x + rng.uniform(-0.05, 0.05), 0, 0.13, COVER) for x in (-0.3, -0.16, 0.17, 0.31)),
        limb(-0.36, height + 0.05, -0.5, height - 0.15, 0.06, DARK),
        ellipse(0, height, 0.45, girth, COVER),
        limb(0.24, height, head_x, head_y, 0.24, COVER),
        limb(head_x - 0.06, head_y + 0.19, head_x, head_y, 0.08, DARK),
        ellipse(head_x + 0.04, head_y, 0.17, 0.13, COVER),
    ]


def boat(rng: np.random.Generator) -> list[Part]:
    """Draw a boat: a high hull with a sail, or with a cabin and a funnel."""
    depth, bow = rng.uniform(0.26, 0.36), rng.uniform(0.1, 0.2)
    hull = polygon(COVER, (-0.5 + bow * 0.6, 0), (0.5 - bow, 0), (0.56, depth), (-0.54, depth * 0.94))
    rim = limb(-0.54, depth * 0.94, 0.56, depth, 0.05, DARK)
    if rng.random() < 0.5:
        top, mast = rng.uniform(0.8, 1.05), rng.uniform(-0.05, 0.12)
        sails = [
            polygon(COVER, (mast - 0.03, depth + 0.06), (mast - 0.03, top), (-0.48, depth + 0.06)),
            polygon(COVER, (mast + 0.04, depth + 0.06), (mast + 0.04, top * 0.9), (0.48, depth + 0.06)),
        ]
        return [limb(mast, depth * 0.5, mast, top + 0.04, 0.05, DARK), *sails, hull, rim]
    left, high = rng.uniform(-0.4, -0.2), rng.uniform(0.2, 0.28)
    panes = [box(left + x, depth + 0.07, left + x + 0.11, depth + 0.18, LIGHT) for x in (0.06, 0.22, 0.38)]
    funnel = box(left + 0.17, depth + high, left + 0.35, depth + high + 0.22, DARK)
    return [funnel, box(left, depth * 0.8, left + 0.55, depth + high, COVER), *panes, hull, rim]


def car(rng: np.random.Generator) -> list[Part]:
    """Draw a car: a body with windows and wheels, as a sedan or a van."""
    wheel, low, high = rng.uniform(0.1, 0.125), 0.07, rng.uniform(0.3, 0.36)
    body = polygon(COVER, (-0.5, low), (0.5, low), (0.5, high - 0.06), (0.44, high), (-0.5, high))
    if rng.random() < 0.5:
        top = high + rng.uniform(0.17, 0.22)
        cabin = polygon(COVER, (-0.42, high - 0.01), (0.34, high - 0.01), (0.16, top), (-0.24, top))
        panes = [
            polygon(
                LIGHT, (-0.31, high + 0.02), (-0.06, high + 0.02), (-0.06, top - 0.05), (-0.2, top - 0.05)
            ),
            polygon(LIGHT, (0.0, high + 0.02), (0.23, high + 0.02), (0.12, top - 0.05), (0.0, top - 0.05)),
        ]
    else:
        top = high + rng.uniform(0.22, 0.3)
        cabin = polygon(COVER, (-0.5, high - 0.01), (0.46, high - 0.01), (0.36, top), (-0.5, top))
        panes = [box(x, high + 0.05, x + 0.2, top - 0.07, LIGHT) for x in (-0.42, -0.13, 0.14)]
    wheels = [ellipse(x, wheel, wheel, wheel, DARK) for x in (-0.29, 0.3)]
    hubs = [ellipse(x, wheel, wheel * 0.45, wheel * 0.45, LIGHT) for x in (-0.29, 0.3)]
    return [cabin, *panes, body, *wheels, *hubs]


def balloon(rng: np.random.Generator) -> list[Part]:
    """Draw a hot-air balloon: an envelope that tapers to its mouth, and a basket below."""
    mouth, radius = rng.uniform(0.2, 0.26), rng.uniform(0.36, 0.42)
    middle = mouth + 1.25 * radius
    angle = np.linspace(-0.2 * np.pi, 1.2 * np.pi, 33)
    crown = np.stack([radius * np.cos(angle), middle + radius * np.sin(angle)], 1)
    envelope = np.concatenate([[(0.1, mouth)], crown, [(-0.1, mouth)]])
    ropes = [limb(side * 0.09, 0.1, side * 0.1, mouth, 0.025, DARK) for side in (-1, 1)]
    return [*ropes, box(-0.1, 0, 0.1, 0.13, DARK), Part(envelope, COVER)]


DESIGNS: dict[str, Design] = {"cow": cow, "boat": boat, "car": car, "balloon": balloon}
