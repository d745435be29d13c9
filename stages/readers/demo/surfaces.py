"""Textures of the stuff classes of the demo, which distinguish classes of similar color.

Every texture is a function of surface coordinates: u to the right, v downward, in units of 1/64 of the image
side. It returns relief in [-1.5, 1.5]: the brightness relative to the color of the surface.
"""

import colorsys
from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

Range = tuple[tuple[float, float], ...]

# Hue (degrees), saturation, value: three ranges per class, natural ones and others; classes overlap.
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
    "wall": (
        ((0, 30), (0.3, 0.6), (0.4, 0.8)),
        ((0, 360), (0.1, 0.4), (0.5, 0.95)),
        ((30, 60), (0.2, 0.4), (0.6, 0.9)),
    ),
    "road": (
        ((0, 360), (0.0, 0.2), (0.3, 0.75)),
        ((20, 50), (0.1, 0.4), (0.4, 0.8)),
        ((190, 240), (0.1, 0.4), (0.4, 0.7)),
    ),
}


def pick(rng: np.random.Generator, ranges: Range) -> np.ndarray:
    """Sample an RGB color in [0, 1], uniform in hue, saturation and value."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in ranges)
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1.0, saturation, value))


Texture = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
LATTICE = 64  # period of the random lattice in cells


def noise(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period_u: float, period_v: float
) -> np.ndarray:
    """Sample smooth noise in [-1, 1] with features of about `period_u` by `period_v` units."""
    lattice = 2 * rng.random(LATTICE**2, np.float32) - 1
    lattice = np.tile(lattice, 2)  # each row continues into the next row, the last into the first
    shift_u, shift_v = rng.uniform(0, LATTICE, 2).astype(np.float32)
    column, row = u / period_u + shift_u, v / period_v + shift_v
    left, top = np.floor(column), np.floor(row)
    x, y = column - left, row - top
    cell = (top.astype(np.int64) * LATTICE + left.astype(np.int64)) % LATTICE**2
    a, b, c, d = (lattice[corner : corner + LATTICE**2][cell] for corner in (0, 1, LATTICE, LATTICE + 1))
    upper, lower = a + (b - a) * x, c + (d - c) * x
    return np.asarray(upper + (lower - upper) * y)


def sky(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Soft clouds of varying strength."""
    return np.asarray(rng.uniform(0.1, 0.6) * np.tanh(1.6 * noise(rng, u, v, 32, 16)))


def grass(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Upright blades."""
    lean = rng.uniform(-0.2, 0.2)
    bend = 2.5 * noise(rng, u, v, 9, 14)
    return _ridges(u + lean * v + bend, rng.uniform(4.5, 5.5))


def water(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Flat waves."""
    bend = 2.5 * noise(rng, u, v, 14, 9)
    return _ridges(v + bend, rng.uniform(7, 8.5))


def road(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Cobblestones: rounded cells of a jittered lattice, with dark joints."""
    size = rng.uniform(9.5, 11.5)
    columns, rows = (np.arange(np.floor(axis.min() / size) - 1, axis.max() / size + 2) for axis in (u, v))
    corner = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    stones = corner + rng.uniform(0.15, 0.85, corner.shape)
    shade = rng.uniform(-0.4, 0.4, len(stones))
    distance, stone = cKDTree(stones).query(np.stack([u, v], -1) / size, k=2)
    joint = np.clip((distance[..., 1] - distance[..., 0]) / 0.25, 0, 1)
    return np.asarray(joint * (shade[stone[..., 0]] + 0.5) - (1 - joint) * 1.5)


def wall(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Courses of bricks of varying shade, with light mortar."""
    height = rng.uniform(7.5, 9)
    width = height * rng.uniform(1.8, 2.2)
    course = np.floor(v / height).astype(int)
    along = u / width + 0.5 * (course % 2)
    cell = (course % LATTICE, np.floor(along).astype(int) % LATTICE)
    shade = rng.uniform(-0.7, 0.2, (LATTICE, LATTICE))[cell]
    is_mortar = (v % height < 2) | ((along % 1.0) * width < 2)
    return np.asarray(np.where(is_mortar, 1.5, shade))


def _ridges(along: np.ndarray, period: float) -> np.ndarray:
    return np.asarray(np.clip(1.8 * np.sin(2 * np.pi * along / period), -1, 1))


TEXTURES: dict[str, Texture] = {"sky": sky, "grass": grass, "water": water, "wall": wall, "road": road}
