"""Fixed, distinct colors for class and cluster ids, also distinguishable with color blindness."""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from stages.dataset.truth import IGNORED

IGNORED_COLOUR = (128, 128, 128)

# Okabe & Ito 2008, without black: designed for every type of color vision.
FIRST = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)

DARKEST, LIGHTEST = 0.35, 0.93  # Oklab lightness, 0 to 1

# Simulation in linear RGB: normal vision, protanopia, deuteranopia (Machado et al. 2009, severity 1).
VISION = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)

# Linear RGB -> cone responses -> Oklab, a perceptually uniform color space (Ottosson 2020).
CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@cache
def palette(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Return `count` RGB colors; longer palettes start with the shorter ones.

    After the first seven, each color maximizes the distance to all previous colors and to gray (ignored
    pixels). Very dark and very light colors are excluded.
    """
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lightness = _as_seen(candidates)[0, :, 0]
    candidates = candidates[(lightness > DARKEST) & (lightness < LIGHTEST)]
    seen = _as_seen(candidates)
    chosen = [np.array(colour, np.uint8) for colour in FIRST[:count]]
    taken = np.array([IGNORED_COLOUR, *FIRST], np.uint8)
    room = np.min([_distance(seen, _as_seen(colour[None])) for colour in taken], axis=0)
    while len(chosen) < count:
        best = int(room.argmax())
        chosen.append(candidates[best])
        room = np.minimum(room, _distance(seen, seen[:, best : best + 1]))
    colours = np.array(chosen, np.uint8).reshape(-1, 3)
    colours.setflags(write=False)
    return colours


def colourise(
    labels: UInt8[np.ndarray, "... H W"], colours: UInt8[np.ndarray, "n 3"]
) -> UInt8[np.ndarray, "... H W 3"]:
    """Color a label map; 255 becomes gray.

    Raises:
        ValueError: a label has no color.
    """
    if len(used := labels[labels != IGNORED]) and used.max() >= len(colours):
        raise ValueError(f"label {used.max()} has no color in a palette of {len(colours)}")
    table = np.full((256, 3), IGNORED_COLOUR, np.uint8)
    table[: min(len(colours), IGNORED)] = colours[:IGNORED]
    picture: np.ndarray = table[labels]
    return picture


def _as_seen(colours: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "3 n 3"]:
    """Convert sRGB colors to Oklab coordinates for each type of color vision."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    simulated = (linear @ VISION.transpose(0, 2, 1)).clip(0, 1)
    return np.asarray(np.cbrt(simulated @ CONES.T) @ OKLAB.T)


def _distance(seen: Float[np.ndarray, "3 n 3"], other: Float[np.ndarray, "3 1 3"]) -> Float[np.ndarray, " n"]:
    """Average the color difference for normal vision and for the type of vision with the smallest one."""
    difference = np.linalg.norm(seen - other, axis=2)
    return np.asarray((difference[0] + difference.min(0)) / 2)
