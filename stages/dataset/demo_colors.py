"""Colours of the demo: wide ranges that overlap between the classes, so that none gives its class away."""

import colorsys

import numpy as np

Range = tuple[tuple[float, float], ...]

# Hue (degrees), saturation, value: three ranges for each class that look natural, next to two for all.
NATURAL: dict[str, tuple[Range, ...]] = {
    "sky": (
        ((195, 225), (0.1, 0.6), (0.6, 1.0)),
        ((10, 45), (0.1, 0.5), (0.6, 0.95)),
        ((0, 360), (0.0, 0.2), (0.4, 0.9)),
    ),
    "grass": (
        ((65, 140), (0.3, 0.7), (0.3, 0.7)),
        ((30, 60), (0.3, 0.6), (0.4, 0.8)),
        ((140, 190), (0.1, 0.4), (0.3, 0.7)),
    ),
    "water": (
        ((165, 230), (0.2, 0.7), (0.3, 0.8)),
        ((20, 60), (0.1, 0.4), (0.3, 0.7)),
        ((80, 160), (0.1, 0.4), (0.3, 0.6)),
    ),
    "sand": (
        ((28, 50), (0.2, 0.5), (0.6, 0.95)),
        ((0, 360), (0.0, 0.2), (0.4, 0.9)),
        ((0, 30), (0.2, 0.5), (0.4, 0.8)),
    ),
    "road": (
        ((0, 360), (0.0, 0.2), (0.3, 0.75)),
        ((20, 50), (0.1, 0.4), (0.4, 0.8)),
        ((190, 240), (0.1, 0.4), (0.4, 0.7)),
    ),
    "wall": (
        ((0, 30), (0.3, 0.6), (0.4, 0.8)),
        ((0, 360), (0.1, 0.4), (0.5, 0.95)),
        ((30, 60), (0.2, 0.4), (0.6, 0.9)),
    ),
    "floor": (
        ((18, 40), (0.3, 0.6), (0.35, 0.85)),
        ((0, 360), (0.0, 0.2), (0.4, 0.9)),
        ((150, 220), (0.1, 0.4), (0.4, 0.8)),
    ),
}
ANYTHING = ((0, 360), (0.05, 0.55), (0.3, 0.9))
OBJECT = ((0, 360), (0.15, 0.9), (0.2, 1.0))


def pick(rng: np.random.Generator, ranges: Range) -> np.ndarray:
    """One RGB colour in [0, 1], uniform in hue, saturation and value."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in ranges)
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1.0, saturation, value))
