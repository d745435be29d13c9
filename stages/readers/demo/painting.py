"""Painting of the demo scenes: bands of stuff, and shaded things with shadows placed on them."""

import numpy as np
from PIL import Image, ImageDraw

from stages.readers.demo.covers import COVERS, Cover
from stages.readers.demo.objects import DARK, DESIGNS, LIGHT
from stages.readers.demo.scenes import CLASSES, HORIZON, PX, Scene
from stages.readers.demo.surfaces import NATURAL, TEXTURES, noise, pick

UNITS = 64  # of surface coordinates per image side
ONE_OR_TWO = (0.75, 0.25)  # probabilities of one thing and of two
SIZES = {1: (0.65, 0.9), 2: (0.45, 0.55)}  # range of the size of one or two things, in image sides
NOTHING = 255  # tone of pixels outside a thing
BRIGHT, DEEP = ((0, 360), (0.0, 0.8), (0.85, 1.0)), ((0, 360), (0.3, 1.0), (0.1, 0.4))  # of patterns
DARK_COLOR, LIGHT_COLOR = ((0, 360), (0.1, 0.5), (0.08, 0.3)), ((0, 360), (0.0, 0.25), (0.75, 1.0))


def place_things(
    rng: np.random.Generator, scene: Scene, edge: np.ndarray, image: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw things on their stuff, distant ones first, each with a shadow if it is on the ground."""
    image, labels = image.clip(0, 1), labels.copy()
    for x, foot, size in sorted(_boxes(rng, scene, edge), key=lambda box: box[1]):
        parts = DESIGNS[scene.thing](rng)
        corners = np.concatenate([part.outline for part in parts])
        scale = size * PX / np.ptp(corners, axis=0).max()
        side = rng.choice([-1, 1])
        tones = Image.new("L", (PX, PX), NOTHING)
        for part in parts:
            outline = [(x * PX + side * scale * a, foot * PX - scale * b) for a, b in part.outline]
            ImageDraw.Draw(tones).polygon(outline, fill=part.tone)
        if not scene.flies:
            _shade_ground(image, x * PX, foot * PX, np.ptp(corners[:, 0]) * scale)
        _paint(rng, image, np.asarray(tones), COVERS[scene.thing])
        labels[np.asarray(tones) != NOTHING] = CLASSES.index(scene.thing)
    return image, labels


def _boxes(rng: np.random.Generator, scene: Scene, edge: np.ndarray) -> list[tuple[float, float, float]]:
    """Sample (x, foot, size) of each thing in fractions of the image side, with little overlap."""
    boxes: list[tuple[float, float, float]] = []
    count = int(rng.choice([1, 2], p=ONE_OR_TWO))
    low, high = SIZES[count]
    for _ in range(20):
        x, size = rng.uniform(0.25, 0.75), rng.uniform(low, high)
        horizon = edge[int(x * PX)]
        top, bottom = (0.0, horizon) if scene.flies else (horizon + 0.1, 0.97)
        foot = rng.uniform(max(top, 0.8 * size), max(bottom, 0.8 * size + 0.05))
        if all(np.hypot(x - a, foot - b) > 0.7 * max(size, c) for a, b, c in boxes):
            boxes.append((x, foot, size))
        if len(boxes) == count:
            break
    return boxes


def _paint(rng: np.random.Generator, image: np.ndarray, tones: np.ndarray, cover: Cover) -> None:
    """Paint a thing over the image: its pattern, dark and light parts, light from above."""
    inside = tones != NOTHING
    y, x = (axis.astype(float) for axis in np.nonzero(inside))
    bright, deep = pick(rng, BRIGHT), pick(rng, DEEP)
    angle = rng.uniform(-0.12, 0.12)
    right, down = ((axis - axis.mean()) * UNITS / PX for axis in (x, y))
    u, v = right * np.cos(angle) - down * np.sin(angle), right * np.sin(angle) + down * np.cos(angle)
    share = cover(rng, u, v)[:, None]
    color = bright * (1 - share) + deep * share
    for tone, ranges in ((DARK, DARK_COLOR), (LIGHT, LIGHT_COLOR)):
        color[tones[inside] == tone] = pick(rng, ranges)
    shade = 1.15 - rng.uniform(0.1, 0.35) * (y - y.min()) / max(np.ptp(y), 1) + 0.08 * noise(rng, x, y, 7, 7)
    image[inside] = color * shade[:, None]


def _shade_ground(image: np.ndarray, x: float, foot: float, width: float) -> None:
    veil = Image.new("L", (PX, PX))
    box = (x - 0.5 * width, foot - 0.07 * width, x + 0.55 * width, foot + 0.06 * width)
    ImageDraw.Draw(veil).ellipse(box, fill=255)
    image[np.asarray(veil) > 0] *= 0.6


def draw_edge(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Sample the upper edge of the lower band in each column [PX], as a height fraction."""
    x = np.linspace(-0.5, 0.5, PX)
    tilt = rng.uniform(-0.1, 0.1) if scene.bands[1] == "water" else rng.uniform(-0.3, 0.3)
    edge = rng.uniform(*HORIZON) + tilt * x
    if scene.bands[1] == "grass":
        edge += rng.uniform(0.0, 0.06) * np.sin(rng.uniform(4, 10) * x + rng.uniform(0, 6))
    return edge


def paint_stuff(rng: np.random.Generator, scene: Scene, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Paint both bands: float RGB in about [0, 1], and class ids."""
    is_lower = (np.arange(PX)[:, None] + 0.5) / PX >= edge
    image, labels = np.zeros((PX, PX, 3), np.float32), np.zeros((PX, PX), np.uint8)
    for name, region, top in zip(scene.bands, (~is_lower, is_lower), (0.0, float(edge.mean())), strict=True):
        image[region] = _surface(rng, name, top, region)
        labels[region] = CLASSES.index(name)
    return image, labels


def _surface(rng: np.random.Generator, name: str, top: float, region: np.ndarray) -> np.ndarray:
    """Sample the RGB values [pixels of region, 3] of one stuff surface."""
    ranges = NATURAL[name][rng.integers(3)]
    y, x = (axis.astype(np.float32) / PX for axis in np.nonzero(region))
    u, v = _coordinates(rng, name, top, x, y)
    color = pick(rng, ranges)
    other = np.clip(color + rng.uniform(-0.12, 0.12, 3), 0, 1)
    blend = 0.5 + 0.5 * noise(rng, u, v, 22, 16)[:, None]
    relief = TEXTURES[name](rng, u, v)[:, None]
    strength = rng.uniform(0.25, 0.33)
    shade = 1 + strength * relief + rng.uniform(-0.2, 0.2) * (2 * y[:, None] - 1)
    return np.asarray((color * blend + other * (1 - blend)) * shade + 0.25 * strength * relief)


def _coordinates(
    rng: np.random.Generator, name: str, top: float, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute surface coordinates of pixels: sky and walls are upright, the ground recedes upward."""
    angle = rng.uniform(-0.1, 0.1)
    u, v = x * UNITS, y * UNITS
    if name not in ("sky", "wall"):
        far, near = 0.85, 1.15
        depth = far + (near - far) * np.clip((y - top) / (1 - top), -0.2, None)
        u = (x - rng.uniform(0.2, 0.8)) * UNITS / depth
        v = UNITS * (1 - top) / (near - far) * np.log(depth)
    return u * np.cos(angle) - v * np.sin(angle) + 2000, u * np.sin(angle) + v * np.cos(angle) + 2000
