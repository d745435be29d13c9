"""Shapes of the thing classes of the demo: several designs per class, distinguished by their parts."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TONES = BODY, ACCENT, DARK, LIGHT = range(4)  # index into the four colors of an object


@dataclass(frozen=True)
class Part:
    """One filled polygon.

    Attributes:
        outline: vertices (x to the right, y upward) [P, 2], in object units.
        tone: BODY, ACCENT, DARK or LIGHT.
    """

    outline: np.ndarray
    tone: int


def ellipse(x: float, y: float, radius_x: float, radius_y: float, tone: int) -> Part:
    """Build an ellipse centered at (x, y)."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return Part(np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], 1), tone)


def polygon(tone: int, *points: tuple[float, float]) -> Part:
    """Build a polygon through the points."""
    return Part(np.array(points, float), tone)


def box(left: float, bottom: float, right: float, top: float, tone: int) -> Part:
    """Build an axis-aligned rectangle."""
    return polygon(tone, (left, bottom), (right, bottom), (right, top), (left, top))


def limb(x0: float, y0: float, x1: float, y1: float, width: float, tone: int) -> Part:
    """Build a bar between two points."""
    length = float(np.hypot(x1 - x0, y1 - y0))
    across_x, across_y = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    return polygon(
        tone,
        (x0 + across_x, y0 + across_y),
        (x1 + across_x, y1 + across_y),
        (x1 - across_x, y1 - across_y),
        (x0 - across_x, y0 - across_y),
    )


Design = Callable[[np.random.Generator], list[Part]]


def animal(rng: np.random.Generator) -> list[Part]:
    """Draw an animal: four legs, a body (smooth, spotted or woolly), a neck and a head with ears."""
    legs, thick = rng.uniform(0.22, 0.42), rng.uniform(0.07, 0.1)
    girth, neck, lean = rng.uniform(0.14, 0.2), rng.uniform(0.08, 0.36), rng.uniform(0.1, 0.2)
    height = legs + girth * 0.9
    parts = [
        limb(x, height, x + rng.uniform(-0.05, 0.05), 0, thick, tone)
        for x, tone in ((-0.2, DARK), (0.22, DARK), (-0.3, BODY), (0.31, BODY))
    ]
    parts.append(limb(-0.36, height + 0.05, -0.46, height - 0.15, 0.05, DARK))
    parts.append(ellipse(0, height, 0.4, girth, BODY))
    surface = rng.choice(["smooth", "spotted", "woolly"])
    angles = np.linspace(0, 2 * np.pi, 11, endpoint=False)
    if surface == "woolly":
        parts += [ellipse(0.36 * np.cos(a), height + 0.15 * np.sin(a), 0.1, 0.1, BODY) for a in angles]
    if surface == "spotted":
        spots = rng.uniform(-1, 1, (4, 2)) * [0.26, girth * 0.5]
        parts += [
            ellipse(x, height + y, rng.uniform(0.05, 0.1), rng.uniform(0.04, 0.07), ACCENT) for x, y in spots
        ]
    head_x, head_y = 0.34 + lean, height + 0.08 + neck
    parts.append(limb(0.28, height, head_x, head_y, 0.14, BODY))
    parts.append(limb(head_x - 0.05, head_y + 0.13, head_x + 0.0, head_y, 0.06, DARK))
    tone = DARK if surface == "woolly" else BODY
    return [*parts, ellipse(head_x + 0.05, head_y, 0.13, 0.085, tone)]


def boat(rng: np.random.Generator) -> list[Part]:
    """Draw a boat: a hull with sails, with a cabin, or with a cabin and a funnel."""
    depth, bow = rng.uniform(0.13, 0.2), rng.uniform(0.1, 0.18)
    hull = polygon(BODY, (-0.5 + bow * 0.5, 0), (0.5 - bow, 0), (0.5, depth), (-0.5, depth * 0.9))
    stripe = polygon(ACCENT, (-0.49, depth * 0.62), (0.47, depth * 0.7), (0.5, depth), (-0.5, depth * 0.9))
    design = rng.choice(["sails", "sails", "cabin", "funnel"])
    if design == "sails":
        top, mast = rng.uniform(0.75, 1.1), rng.uniform(-0.05, 0.12)
        sails = [polygon(LIGHT, (mast - 0.03, depth + 0.06), (mast - 0.03, top), (-0.46, depth + 0.08))]
        if rng.random() < 0.7:
            sails.append(
                polygon(ACCENT, (mast + 0.03, depth + 0.06), (mast + 0.03, top * 0.88), (0.47, depth + 0.06))
            )
        return [limb(mast, depth * 0.5, mast, top + 0.04, 0.045, DARK), *sails, hull, stripe]
    left, high = rng.uniform(-0.35, -0.2), rng.uniform(0.16, 0.24)
    deck = box(left, depth * 0.8, left + 0.46, depth + high, LIGHT)
    panes = [
        box(left + x, depth + 0.06, left + x + 0.09, depth + high - 0.04, DARK) for x in (0.05, 0.18, 0.31)
    ]
    if design == "cabin":
        return [
            deck,
            *panes,
            hull,
            stripe,
            limb(left + 0.1, depth, left + 0.1, depth + high + 0.25, 0.04, DARK),
        ]
    funnel = box(left + 0.16, depth + high, left + 0.3, depth + high + 0.24, ACCENT)
    rim = box(left + 0.15, depth + high + 0.17, left + 0.31, depth + high + 0.25, DARK)
    return [funnel, rim, deck, *panes, hull, stripe]


def car(rng: np.random.Generator) -> list[Part]:
    """Draw a car: a body with windows and wheels, as a sedan, van or pickup."""
    wheel, low, high = rng.uniform(0.095, 0.12), 0.07, rng.uniform(0.24, 0.29)
    design = rng.choice(["saloon", "van", "pickup"])
    body = polygon(BODY, (-0.5, low), (0.5, low), (0.5, high - 0.06), (0.44, high), (-0.49, high))
    if design == "saloon":
        top = high + rng.uniform(0.15, 0.2)
        cabin = [
            polygon(BODY, (-0.42, high - 0.01), (0.32, high - 0.01), (0.15, top), (-0.24, top)),
            polygon(
                LIGHT, (-0.34, high + 0.01), (-0.07, high + 0.01), (-0.07, top - 0.03), (-0.22, top - 0.03)
            ),
            polygon(
                LIGHT, (-0.02, high + 0.01), (0.25, high + 0.01), (0.13, top - 0.03), (-0.02, top - 0.03)
            ),
        ]
    elif design == "van":
        top = high + rng.uniform(0.22, 0.32)
        cabin = [
            polygon(BODY, (-0.49, high - 0.01), (0.46, high - 0.01), (0.36, top), (-0.49, top)),
            *(box(x, high + 0.03, x + 0.2, top - 0.05, LIGHT) for x in (-0.44, -0.18)),
            polygon(LIGHT, (0.08, high + 0.03), (0.4, high + 0.03), (0.32, top - 0.05), (0.08, top - 0.05)),
        ]
    else:
        top = high + rng.uniform(0.17, 0.22)
        cabin = [
            polygon(BODY, (-0.06, high - 0.01), (0.34, high - 0.01), (0.24, top), (-0.04, top)),
            polygon(LIGHT, (0.0, high + 0.01), (0.27, high + 0.01), (0.2, top - 0.04), (0.0, top - 0.04)),
            box(-0.5, high - 0.02, -0.08, high + 0.04, ACCENT),
        ]
    wheels = [ellipse(x, wheel, wheel, wheel, DARK) for x in (-0.29, 0.3)]
    hubs = [ellipse(x, wheel, wheel * 0.45, wheel * 0.45, LIGHT) for x in (-0.29, 0.3)]
    return [*cabin, body, box(0.42, high - 0.1, 0.5, high - 0.05, ACCENT), *wheels, *hubs]


def parasol(rng: np.random.Generator) -> list[Part]:
    """Draw a parasol: a two-color canopy on a pole, domed or pointed, upright or tilted."""
    panels, rise = int(rng.choice([4, 5, 6])), rng.uniform(0.28, 0.42)
    bulge = rng.choice([0.45, 1.0])
    edge = np.linspace(-0.5, 0.5, panels + 1)
    pole_top = rng.uniform(0.5, 0.75)
    parts = [limb(0, 0, 0, pole_top + 0.1, 0.06, DARK)]
    share = np.linspace(0, 1, 9)
    for index, (left, right) in enumerate(itertools.pairwise(edge)):
        up_left = np.stack([left * (1 - share), rise * share**bulge], 1)
        up_right = np.stack([right * (1 - share), rise * share**bulge], 1)
        scallop = [[(left + right) / 2, 0.04]]
        outline = np.concatenate([scallop, up_left, up_right[::-1]]) + np.array([0, pole_top])
        parts.append(Part(outline, BODY if index % 2 else ACCENT))
    angle = rng.uniform(-0.35, 0.35)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [Part(part.outline @ turn, part.tone) for part in parts]


def chair(rng: np.random.Generator) -> list[Part]:
    """Draw a chair: a slatted chair from the side or the front, or an armchair."""
    design, seat, back = (
        rng.choice(["side", "front", "arms"]),
        rng.uniform(0.34, 0.44),
        rng.uniform(0.4, 0.55),
    )
    thick = rng.uniform(0.075, 0.1)
    if design == "side":
        slats = [
            box(-0.3, seat + back * share, -0.2, seat + back * share + 0.09, ACCENT) for share in (0.35, 0.75)
        ]
        legs = [limb(x, seat, x + lean, 0, thick, BODY) for x, lean in ((-0.27, -0.06), (0.28, 0.05))]
        rung = limb(-0.28, seat * 0.4, 0.3, seat * 0.4, 0.05, DARK)
        return [
            rung,
            *legs,
            limb(-0.27, seat, -0.36, seat + back, thick, BODY),
            *slats,
            box(-0.34, seat - 0.03, 0.36, seat + 0.07, ACCENT),
        ]
    if design == "front":
        posts = [limb(x, 0, x, seat + back, thick, BODY) for x in (-0.26, 0.26)]
        slats = [
            box(-0.26, seat + back * share, 0.26, seat + back * share + 0.1, BODY) for share in (0.4, 0.8)
        ]
        legs = [limb(x * 1.15, seat, x * 1.25, 0, thick, DARK) for x in (-0.26, 0.26)]
        return [
            *posts,
            *slats,
            *legs,
            polygon(
                ACCENT, (-0.36, seat - 0.06), (0.36, seat - 0.06), (0.3, seat + 0.07), (-0.3, seat + 0.07)
            ),
        ]
    feet = [box(x, 0, x + 0.09, 0.14, DARK) for x in (-0.38, 0.29)]
    arms = [box(x, 0.1, x + 0.17, seat + 0.12, BODY) for x in (-0.47, 0.3)]
    tops = [ellipse(x, seat + 0.12, 0.095, 0.08, BODY) for x in (-0.385, 0.385)]
    rest = polygon(BODY, (-0.36, 0.2), (0.36, 0.2), (0.32, seat + back), (-0.32, seat + back))
    cushion = box(-0.31, seat - 0.14, 0.31, seat + 0.03, ACCENT)
    return [*feet, rest, *arms, *tops, box(-0.4, 0.1, 0.4, seat - 0.12, BODY), cushion]


DESIGNS: dict[str, Design] = {"animal": animal, "boat": boat, "car": car, "parasol": parasol, "chair": chair}
