"""The demo data set: synthetic scenes that do not depend on the training seed.

Layout, color and lighting vary so much that color does not identify a class, and position tells no more than
the upper stuff from the lower. The reliable cues are texture, shape and co-occurrence of classes. Textures
are coarse: their periods are still several pixels long in the small views that pretraining sees.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from stages.core.seeds import numpy_generator
from stages.dataset.source import DataSet, Decoded, Item, RawFile
from stages.readers.demo.painting import draw_edge, paint_stuff, place_things
from stages.readers.demo.scenes import CLASSES, KINDS, PX, SCENES, Scene
from stages.settings.schema_prepare import Prepare

DEMO_SEED = 20  # seed of the data; `seed` of params.yaml affects only the training


def list_data(_: Path, settings: Prepare) -> DataSet:
    """List the items; scene types alternate, so that both splits contain all of them."""
    train, val = (
        tuple(Item(f"{index:05d}", f"demo/{split}/{index:05d}") for index in range(count))
        for split, count in (("train", settings.demo.num_train), ("val", settings.demo.num_val))
    )
    return DataSet(train, val, CLASSES, draw_item, KINDS)


def draw_item(item: Item) -> Decoded:
    """Draw one image, determined by its split and index."""
    kinds = tuple(SCENES.values())
    pixels, labels = draw(numpy_generator(DEMO_SEED, item.source), kinds[int(item.id) % len(kinds)])
    content = pixels.tobytes()
    file = RawFile(item.source, len(content), hashlib.sha256(content).hexdigest())
    return Decoded(Image.fromarray(pixels), labels, (file,))


def draw(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image of `scene`: uint8 RGB [PX, PX, 3], and class ids uint8 [PX, PX]."""
    edge = draw_edge(rng, scene)
    image, labels = paint_stuff(rng, scene, edge)
    image, labels = place_things(rng, scene, edge, image, labels)
    image = _light(rng, image)
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def _light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Apply global lighting: exposure, tint, a brightness gradient, and sensor noise."""
    y, x = np.mgrid[-0.5 : 0.5 : PX * 1j, -0.5 : 0.5 : PX * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    gradient = 1 + rng.uniform(0, 0.35) * (x * np.cos(angle) + y * np.sin(angle))
    gain = rng.uniform(0.8, 1.15) * rng.uniform(0.86, 1.14, 3)
    image = image * gradient[..., None] * gain + 0.02 * rng.standard_normal(image.shape, np.float32)
    return np.asarray(np.clip(image, 0, 1) * 255, np.uint8)
