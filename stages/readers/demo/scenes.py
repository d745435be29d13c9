"""Scene types of the demo: their stuff bands and the things on them."""

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
        bands: stuff classes from top to bottom.
        things: (thing class, stuff class that it stands on, maximum number of things).
        closeup: probability that the topmost band is out of view.
    """

    bands: tuple[str, ...]
    things: tuple[tuple[str, str, int], ...]
    closeup: float


SCENES = {
    "meadow": Scene(("sky", "grass"), (("animal", "grass", 4),), 0.25),
    "dunes": Scene(("sky", "sand"), (("animal", "sand", 3),), 0.2),
    "harbour": Scene(("sky", "water"), (("boat", "water", 4),), 0.2),
    "beach": Scene(("sky", "water", "sand"), (("parasol", "sand", 3), ("boat", "water", 1)), 0.3),
    "street": Scene(("sky", "wall", "road"), (("car", "road", 3),), 0.5),
    "room": Scene(("wall", "floor"), (("chair", "floor", 3),), 0.1),
    "country": Scene(("sky", "grass", "road"), (("car", "road", 2), ("animal", "grass", 2)), 0.25),
    "terrace": Scene(("sky", "water", "floor"), (("parasol", "floor", 2), ("chair", "floor", 3)), 0.3),
}
