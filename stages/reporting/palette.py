"""Colours for class and cluster ids: distinct, always the same, and told apart by colour-blind eyes too."""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from stages.dataset.truth import IGNORED

IGNORED_COLOUR = (128, 128, 128)

# Okabe & Ito 2008, without black: chosen by them for every kind of colour vision.
FIRST = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)

DARKEST, LIGHTEST = 0.35, 0.93  # in Oklab, 0 to 1

# Linear RGB as seen without the red or the green cones (Machado, Oliveira & Fernandes 2009, severity 1).
VISION = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)

# Linear RGB -> cone responses -> Oklab, in which distance is difference to the eye (Ottosson 2020).
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
    """`count` RGB colours; a longer palette begins with the shorter one.

    After the first seven, each next colour is the one that is farthest from all before it and from grey
    (ignored pixels); neither nearly black nor nearly white.
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
    """A label map as a picture; 255 is grey.

    Raises:
        ValueError: a label has no colour.
    """
    if len(used := labels[labels != IGNORED]) and used.max() >= len(colours):
        raise ValueError(f"label {used.max()} has no colour in a palette of {len(colours)}")
    table = np.full((256, 3), IGNORED_COLOUR, np.uint8)
    table[: min(len(colours), IGNORED)] = colours[:IGNORED]
    picture: np.ndarray = table[labels]
    return picture


def _as_seen(colours: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "3 n 3"]:
    """Oklab coordinates of sRGB colours for each kind of colour vision."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    simulated = (linear @ VISION.transpose(0, 2, 1)).clip(0, 1)
    return np.asarray(np.cbrt(simulated @ CONES.T) @ OKLAB.T)


def _distance(seen: Float[np.ndarray, "3 n 3"], other: Float[np.ndarray, "3 1 3"]) -> Float[np.ndarray, " n"]:
    """The mean of the difference to full colour vision and to the kind that tells them apart worst."""
    difference = np.linalg.norm(seen - other, axis=2)
    return np.asarray((difference[0] + difference.min(0)) / 2)
