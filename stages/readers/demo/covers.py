"""Patterns on the thing classes of the demo, in two colors that are drawn at random for each thing.

Every pattern is a function of coordinates on the thing: u to the right from its middle, v downward, in units
of 1/64 of the image side. It returns the share of the second color, 0 to 1.
"""

from collections.abc import Callable

import numpy as np

from stages.readers.demo.surfaces import noise

Cover = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]


def patches(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Irregular patches, as of a cow."""
    return np.asarray(np.clip(4 * noise(rng, u, v, 9, 9) + 0.5, 0, 1))


def slants(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Diagonal stripes, as of a signal flag."""
    return _stripes((u + v) / 2**0.5, rng.uniform(8, 10))


def spots(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Round spots in rows that are shifted by half, as of a ladybird."""
    period = rng.uniform(8, 9.5)
    row = np.floor(v / period)
    x, y = (u / period + 0.5 * (row % 2)) % 1 - 0.5, (v / period) % 1 - 0.5
    return np.asarray(np.clip(12 * (0.33 - np.hypot(x, y)) + 0.5, 0, 1))


def gores(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Vertical panels, as of a hot-air balloon: three times as wide as blades of grass."""
    return _stripes(u, rng.uniform(14, 16))


def _stripes(along: np.ndarray, period: float) -> np.ndarray:
    """Stripes of equal width with soft edges."""
    return np.asarray(np.clip(2.5 * np.sin(2 * np.pi * along / period) + 0.5, 0, 1))


COVERS: dict[str, Cover] = {"cow": patches, "boat": slants, "car": spots, "balloon": gores}
