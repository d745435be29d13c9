"""Backgrounds of the demo: bands of stuff that tilt and wave, each seen under an angle of its own."""

import numpy as np

from stages.dataset.demo_colors import ANYTHING, NATURAL, pick
from stages.dataset.demo_scenes import CLASSES, PX
from stages.dataset.demo_textures import TEXTURES, noise

NATURAL_SHARE = 0.7  # of surfaces in a colour natural for the class; the others have any


def draw_edges(rng: np.random.Generator, bands: tuple[str, ...]) -> np.ndarray:
    """The upper edge of each band in each column [bands, PX], as a fraction of the height; the first is 0."""
    x = np.linspace(-0.5, 0.5, PX)
    edges = np.zeros((len(bands), PX))
    for index, name in enumerate(bands[1:], 1):
        free = 1.0 - edges[index - 1].mean()
        later = len(bands) - index
        level = edges[index - 1].mean() + free * rng.uniform(0.22, 0.62) / (1.0 if later == 1 else 1.5)
        tilt = rng.uniform(-0.1, 0.1) if name == "water" else rng.uniform(-0.3, 0.3)
        edge = level + tilt * x
        if name in ("grass", "sand"):
            edge += rng.uniform(0.0, 0.06) * np.sin(rng.uniform(4, 10) * x + rng.uniform(0, 6))
        if name == "wall":  # roofs of several heights
            steps = np.floor((x + rng.uniform(0, 1)) * rng.uniform(1.5, 4)).astype(int)
            edge = level + rng.uniform(-0.13, 0.13, 8)[steps % 8]
        edges[index] = np.maximum(edge, edges[index - 1] + 0.06)
    return edges


def paint_stuff(
    rng: np.random.Generator, bands: tuple[str, ...], edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bands over one another: float RGB in about [0, 1], and class ids."""
    band = ((np.arange(PX)[:, None] + 0.5) / PX >= edges[:, None]).sum(0) - 1
    image, labels = np.zeros((PX, PX, 3), np.float32), np.zeros((PX, PX), np.uint8)
    for index, name in enumerate(bands):
        region = band == index
        image[region] = _surface(rng, name, float(edges[index].mean()), region)
        labels[region] = CLASSES.index(name)
    return image, labels


def _surface(rng: np.random.Generator, name: str, top: float, region: np.ndarray) -> np.ndarray:
    """RGB [pixels of region, 3] of one stuff class, in colours of its own."""
    ranges = NATURAL[name][rng.integers(3)] if rng.random() < NATURAL_SHARE else ANYTHING
    y, x = (axis.astype(np.float32) / PX for axis in np.nonzero(region))
    u, v = _coordinates(rng, name, top, x, y)
    color = pick(rng, ranges)
    other = np.clip(color + rng.uniform(-0.12, 0.12, 3), 0, 1)
    blend = 0.5 + 0.5 * noise(rng, u, v, 55, 40)[:, None]
    relief = TEXTURES[name](rng, u, v)[:, None]
    strength = rng.uniform(0.26, 0.36)
    shade = 1 + strength * relief + rng.uniform(-0.2, 0.2) * (2 * y[:, None] - 1)
    return np.asarray((color * blend + other * (1 - blend)) * shade + 0.25 * strength * relief)


def _coordinates(
    rng: np.random.Generator, name: str, top: float, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Surface coordinates of pixels: the ground recedes towards its upper edge, the rest is upright."""
    angle = rng.uniform(-0.12, 0.12)
    zoom = rng.uniform(1.1, 1.45)
    if name in ("sky", "wall"):
        u, v = x * PX / zoom, y * PX / zoom
    else:
        far, near = (0.45, 1.35) if name == "floor" else (0.7, 1.15)
        depth = zoom * (far + (near - far) * np.clip((y - top) / (1 - top), -0.2, None))
        u = (x - rng.uniform(0.2, 0.8)) * PX / depth
        v = PX * (1 - top) / (zoom * (near - far)) * np.log(np.maximum(depth, 0.05))
    return u * np.cos(angle) - v * np.sin(angle) + 2000, u * np.sin(angle) + v * np.cos(angle) + 2000
