"""Textures of the stuff classes of the demo, which distinguish classes of similar color.

Every texture is a function of surface coordinates (u to the right, v downward, in pixels of the drawn image
at unit scale). It returns relief in about [-1, 1]: the brightness relative to the color of the surface.
"""

import colorsys
from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

Range = tuple[tuple[float, float], ...]

# Hue (degrees), saturation, value: three natural-looking ranges per class; two more ranges for all classes.
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
    """Sample an RGB color in [0, 1], uniform in hue, saturation and value."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in ranges)
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1.0, saturation, value))


Texture = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
LATTICE = 64  # period of the random lattice in cells


def noise(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period_u: float, period_v: float
) -> np.ndarray:
    """Sample smooth noise in [-1, 1] with features of about `period_u` by `period_v` pixels."""
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
    clouds = noise(rng, u, v, 90, 45) + 0.4 * noise(rng, u, v, 45, 24)
    return np.asarray(rng.uniform(0.1, 0.8) * np.tanh(1.6 * clouds - 0.2))


def grass(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Upright blades on a patchy ground."""
    lean = rng.uniform(-0.25, 0.25)
    blades = noise(rng, u + lean * v, v, 7, 34) + 0.8 * noise(rng, u - lean * v, v, 10, 28)
    return np.asarray(1.3 * blades + 0.3 * noise(rng, u, v, 70, 30))


def water(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Flat ripples with narrow crests."""
    bend = 4 * noise(rng, u, v, 90, 60)
    ripples = noise(rng, u, v + bend, 50, 9) + 0.7 * noise(rng, u, v + bend, 32, 7)
    return np.asarray(1.5 * np.clip(ripples, -0.6, 1.0))


def sand(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Isotropic grain on faint dunes."""
    grain = noise(rng, u, v, 6.5, 6.5) + 0.7 * noise(rng, u, v, 5, 5)
    return np.asarray(1.4 * grain + 0.2 * noise(rng, u, v, 60, 25))


def road(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Cobblestones: rounded cells of a jittered lattice, of varying shade, with dark joints."""
    size = rng.uniform(18, 23)
    columns, rows = (np.arange(np.floor(axis.min() / size) - 1, axis.max() / size + 2) for axis in (u, v))
    corner = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    stones = corner + rng.uniform(0.12, 0.88, corner.shape)
    shade = rng.uniform(-0.7, 0.8, len(stones))
    distance, stone = cKDTree(stones).query(np.stack([u, v], -1) / size, k=2)
    joint = np.clip((distance[..., 1] - distance[..., 0]) / 0.2, 0, 1)
    relief = 0.6 * shade[stone[..., 0]] + 0.6 - 0.5 * distance[..., 0]
    return np.asarray(joint * relief - (1 - joint) * 1.2)


def wall(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Courses of bricks of varying shade, with lighter or darker mortar."""
    height = rng.uniform(13, 17)
    width = height * rng.uniform(1.9, 2.4)
    course = np.floor(v / height).astype(int)
    along = u / width + 0.5 * (course % 2)
    shade = rng.uniform(-0.6, 0.6, (LATTICE, LATTICE))[
        course % LATTICE, np.floor(along).astype(int) % LATTICE
    ]
    is_mortar = (v % height < 3.2) | ((along % 1.0) * width < 3.2)
    mortar = rng.choice([-1.4, 1.5])
    return np.asarray(np.where(is_mortar, mortar, shade + 0.2 * noise(rng, u, v, 5, 5)))


def floor(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Planks in depth direction, of varying shade, with wood grain and dark gaps."""
    width = rng.uniform(20, 28)
    plank = np.floor(u / width).astype(int)
    shade = rng.uniform(-0.8, 0.8, LATTICE)[plank % LATTICE]
    is_gap = (u % width) < 3.5
    return np.asarray(np.where(is_gap, -1.5, shade + 0.25 * noise(rng, u, v, 6, 70)))


TEXTURES: dict[str, Texture] = {
    "sky": sky,
    "grass": grass,
    "water": water,
    "sand": sand,
    "road": road,
    "wall": wall,
    "floor": floor,
}
