"""Scene types of the demo: two bands of stuff, and the things on them.

Scenes share classes: each stuff class lies in several kinds of scenes, and each kind of thing is seen before
several kinds of stuff. Sky and wall are above, grass, water and road below. The range of the horizon is the
same in all of them, so that its height does not tell the scene.
"""

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
    """

    bands: tuple[str, str]
    thing: str

    @property
    def flies(self) -> bool:
        """Whether the things are in the upper band; a large balloon reaches down over the lower one."""
        return self.thing == "balloon"


HORIZON = (0.3, 0.65)  # range of the height of the upper band, as a fraction of the image side
SCENES = {
    "meadow": Scene(("sky", "grass"), "cow"),
    "sea": Scene(("sky", "water"), "boat"),
    "highway": Scene(("sky", "road"), "car"),
    "flight over land": Scene(("sky", "grass"), "balloon"),
    "pasture": Scene(("wall", "grass"), "cow"),
    "quay": Scene(("wall", "water"), "boat"),
    "street": Scene(("wall", "road"), "car"),
    "flight over sea": Scene(("sky", "water"), "balloon"),
    "farmyard": Scene(("wall", "road"), "cow"),
    "boatyard": Scene(("sky", "road"), "boat"),
    "garden": Scene(("wall", "grass"), "car"),
    "flight over a road": Scene(("sky", "road"), "balloon"),
}
