"""Scene types of the demo: two bands of stuff, and the things on them. Classes meet in many combinations."""

from dataclasses import dataclass

from stages.dataset.truth import Kind
from stages.readers.demo.objects import DESIGNS
from stages.readers.demo.surfaces import TEXTURES

CLASSES = (*TEXTURES, *DESIGNS)
KINDS: tuple[Kind, ...] = tuple("stuff" if name in TEXTURES else "thing" for name in CLASSES)
PX = 160  # side of the drawn scenes; packing downscales them with antialiasing


@dataclass(frozen=True)
class Scene:
    """One type of scene.

    Attributes:
        bands: the upper and the lower stuff class.
        thing: class of the things.
        place: stuff class that they are on, or in.
        horizon: range of the height of the upper band, as a fraction of the image side.
    """

    bands: tuple[str, str]
    thing: str
    place: str
    horizon: tuple[float, float]


HIGH, LOW = (0.25, 0.45), (0.6, 0.75)  # horizons: below the things on the ground, and below those in the sky
SCENES = {
    "meadow": Scene(("sky", "grass"), "cow", "grass", HIGH),
    "sea": Scene(("sky", "water"), "boat", "water", HIGH),
    "street": Scene(("wall", "road"), "car", "road", HIGH),
    "flight over land": Scene(("sky", "grass"), "balloon", "sky", LOW),
    "river": Scene(("grass", "water"), "boat", "water", HIGH),
    "country road": Scene(("grass", "road"), "car", "road", HIGH),
    "pasture": Scene(("wall", "grass"), "cow", "grass", HIGH),
    "flight over town": Scene(("sky", "wall"), "balloon", "sky", LOW),
    "quay": Scene(("wall", "water"), "boat", "water", HIGH),
    "coast road": Scene(("water", "road"), "car", "road", HIGH),
    "flight over sea": Scene(("sky", "water"), "balloon", "sky", LOW),
    "cattle on the road": Scene(("sky", "road"), "cow", "road", HIGH),
}
