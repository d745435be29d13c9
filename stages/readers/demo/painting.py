"""Painting of the demo scenes: bands of stuff, and shaded things with shadows placed on them."""

import numpy as np
from PIL import Image, ImageDraw

from stages.readers.demo.objects import DESIGNS, TONES
from stages.readers.demo.scenes import CLASSES, PX, Scene
from stages.readers.demo.surfaces import ANYTHING, NATURAL, OBJECT, TEXTURES, noise, pick

SMALLEST = 0.17  # minimum size of things, as a fraction of the image side


def place_things(
    rng: np.random.Generator,
    scene: Scene,
    bands: tuple[str, ...],
    edges: np.ndarray,
    image: np.ndarray,
    labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw things on their stuff, distant ones first, each with a ground shadow."""
    boxes = _boxes(rng, scene, bands, edges)
    picture = Image.fromarray(np.uint8(np.clip(image, 0, 1) * 255))
    ids, owner = Image.fromarray(labels), Image.new("L", (PX, PX))
    for index, (name, x, foot, size) in enumerate(sorted(boxes, key=lambda box: box[2]), 1):
        parts = DESIGNS[name](rng)
        corners = np.concatenate([part.outline for part in parts])
        scale = size * PX / np.ptp(corners, axis=0).max()
        flip = rng.choice([-1, 1])
        tones = _tones(rng, np.asarray(picture), x, foot, size)
        _shadow(picture, x * PX, foot * PX, np.ptp(corners[:, 0]) * scale)
        for part in parts:
            outline = [(x * PX + flip * scale * a, foot * PX - scale * b) for a, b in part.outline]
            ImageDraw.Draw(picture).polygon(outline, fill=tones[part.tone])
            ImageDraw.Draw(ids).polygon(outline, fill=CLASSES.index(name))
            ImageDraw.Draw(owner).polygon(outline, fill=index)
    return _shaded(rng, np.asarray(picture) / 255.0, np.asarray(owner)), np.asarray(ids)


def _boxes(
    rng: np.random.Generator, scene: Scene, bands: tuple[str, ...], edges: np.ndarray
) -> list[tuple[str, float, float, float]]:
    """Sample (class, x, foot, size) of each thing in fractions of the image side, with little overlap."""
    boxes: list[tuple[str, float, float, float]] = []
    for name, ground, most in scene.things:
        if ground not in bands:
            continue
        band = bands.index(ground)
        count = int(rng.integers(0 if boxes else 1, most + 1))
        largest = min(0.55, 0.95 / max(count, 1) ** 0.5)
        for _ in range(8 * count):
            x, share = rng.uniform(0.08, 0.92), rng.uniform(0.1, 1.0)
            top = edges[band, int(x * PX)]
            bottom = edges[band + 1, int(x * PX)] if band + 1 < len(bands) else 0.98
            foot = top + (bottom - top) * share
            size = max(SMALLEST, rng.uniform(0.65, 1.0) * largest * (0.7 + 0.3 * share))
            if foot - 0.5 * size > 0 and all(
                np.hypot(x - a, foot - b) > 0.62 * max(size, c) for _, a, b, c in boxes
            ):
                boxes.append((name, x, foot, size))
                count -= 1
            if not count:
                break
    return boxes


def _tones(
    rng: np.random.Generator, picture: np.ndarray, x: float, foot: float, size: float
) -> dict[int, tuple[int, ...]]:
    """Sample four colors of an object; the body contrasts with the ground and the accent with the body."""
    half = size / 2
    rows = slice(max(0, int((foot - half) * PX)), int(foot * PX) + 1)
    columns = slice(max(0, int((x - half) * PX)), int((x + half) * PX) + 1)
    ground = picture[rows, columns].reshape(-1, 3).mean(0) / 255
    body = max((pick(rng, OBJECT) for _ in range(3)), key=lambda color: np.abs(color - ground).sum())
    accent = max((pick(rng, OBJECT) for _ in range(3)), key=lambda color: np.abs(color - body).sum())
    dark = pick(rng, ((0, 360), (0.1, 0.5), (0.08, 0.3)))
    light = pick(rng, ((0, 360), (0.0, 0.25), (0.75, 1.0)))
    colors = (body, accent, dark, light)
    return {tone: tuple(int(255 * c) for c in color) for tone, color in zip(TONES, colors, strict=True)}


def _shadow(picture: Image.Image, x: float, foot: float, width: float) -> None:
    veil = Image.new("L", picture.size)
    box = (x - 0.5 * width, foot - 0.07 * width, x + 0.55 * width, foot + 0.06 * width)
    ImageDraw.Draw(veil).ellipse(box, fill=110)
    picture.paste((12, 12, 20), mask=veil)


def _shaded(rng: np.random.Generator, image: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Shade every object with light from above and slight noise, to avoid uniform patches."""
    rows, columns = np.mgrid[:PX, :PX].astype(float)
    uneven = 0.1 * noise(rng, columns, rows, 7, 7)
    for index in range(1, int(owner.max()) + 1):
        inside = owner == index
        if inside.any():
            height = rows[inside] - rows[inside].min()
            shade = 1.15 - rng.uniform(0.1, 0.4) * height / max(height.max(), 1) + uneven[inside]
            image[inside] *= shade[:, None]
    return image


NATURAL_SHARE = 0.7  # fraction of surfaces in a natural color of the class; the others have any color


def draw_edges(rng: np.random.Generator, bands: tuple[str, ...]) -> np.ndarray:
    """Sample the upper edge of each band per column [bands, PX] as a height fraction; the first is 0."""
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
        if name == "wall":  # roofs of different heights
            steps = np.floor((x + rng.uniform(0, 1)) * rng.uniform(1.5, 4)).astype(int)
            edge = level + rng.uniform(-0.13, 0.13, 8)[steps % 8]
        edges[index] = np.maximum(edge, edges[index - 1] + 0.06)
    return edges


def paint_stuff(
    rng: np.random.Generator, bands: tuple[str, ...], edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the bands: float RGB in about [0, 1], and class ids."""
    band = ((np.arange(PX)[:, None] + 0.5) / PX >= edges[:, None]).sum(0) - 1
    image, labels = np.zeros((PX, PX, 3), np.float32), np.zeros((PX, PX), np.uint8)
    for index, name in enumerate(bands):
        region = band == index
        image[region] = _surface(rng, name, float(edges[index].mean()), region)
        labels[region] = CLASSES.index(name)
    return image, labels


def _surface(rng: np.random.Generator, name: str, top: float, region: np.ndarray) -> np.ndarray:
    """Sample the RGB values [pixels of region, 3] of one stuff surface."""
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
    """Compute surface coordinates of pixels: sky and walls are upright, the ground recedes upward."""
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
