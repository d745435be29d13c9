"""Published files of COCO-Stuff: their URLs, and where the reader looks for what they hold."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

COCO = "http://images.cocodataset.org/zips"
COCO_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
CURATED = (
    "https://raw.githubusercontent.com/janghyuncho/PiCIE/fc4e7c193c2ba77a6dbf9f24e5e7cf99da9f528a/curated"
)
LIST = "Coco164kFull_Stuff_Coarse_7"
IMAGES = ("images/{}", "{}")
LABELS = ("stuffthingmaps/{}", "annotations/{}", "stuffthingmaps_trainval2017/{}", "{}")
TRAIN_IMAGES, VAL_IMAGES = 118_287, 5_000


@dataclass(frozen=True)
class Part:
    """One published file.

    Attributes:
        url: download address.
        what: description for messages.
        to: target folder inside the data set, for the unpacked archive or the file.
        size_bytes: file size; None if not published.
        sha256: file hash; empty if not published (the checksums inside the archive are used instead).
        brings: folders in the archive, with the number of files in each; empty for a plain file.
        places: folders inside the data set where such files may lie, `{}` for the name of the folder; the
            first is where the archive is unpacked.
        suffix: of these files.
    """

    url: str
    what: str
    to: str
    size_bytes: int | None = None
    sha256: str = ""
    brings: Mapping[str, int] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    suffix: str = ""

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rsplit("/", 1)[1]


# Sizes and hashes: tensorflow/datasets, url_checksums/coco.txt (image archives); PiCIE (lists).
COCO_PARTS = {
    "train2017 images": Part(
        f"{COCO}/train2017.zip", "118,287 training images of COCO 2017", "images",
        19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        {"train2017": TRAIN_IMAGES}, IMAGES, ".jpg",
    ),
    "val2017 images": Part(
        f"{COCO}/val2017.zip", "5,000 validation images of COCO 2017", "images",
        815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        {"val2017": VAL_IMAGES}, IMAGES, ".jpg",
    ),
    "label maps": Part(
        f"{COCO_STUFF}/stuffthingmaps_trainval2017.zip", "label maps of COCO-Stuff, about 0.7 GB",
        "stuffthingmaps", None, "",
        {"train2017": TRAIN_IMAGES, "val2017": VAL_IMAGES}, LABELS, ".png",
    ),
    "train2017 list": Part(
        f"{CURATED}/train2017/{LIST}.txt", "list of the 49,629 training images",
        "curated/train2017", 645_177, "3b837594a81880a70f177afab906fc45147d8b9c2c4f51132f784e41941812f9",
    ),
    "val2017 list": Part(
        f"{CURATED}/val2017/{LIST}.txt", "list of the 2,175 validation images",
        "curated/val2017", 28_275, "7c629734c88f1a74bba6311e01d4d9fe976df84f07cb4fc86452ce5116e51655",
    ),
}  # fmt: skip


def folder_of(root: Path, part: Part, name: str) -> tuple[str, set[str]]:
    """Find the files of one folder of a published archive, wherever they may lie.

    Args:
        root: folder of the data set.
        part: the archive.
        name: name of the folder in it.

    Returns:
        The first folder inside the data set that has such files, and their names without suffix; without any
        the first place, and no names.
    """
    for place in part.places:
        folder = root / place.format(name)
        if folder.is_dir():
            names = {
                file.removesuffix(part.suffix)
                for file in os.listdir(folder)
                if file.endswith(part.suffix) and file[0] != "."
            }
            if names:
                return place.format(name), names
    return part.places[0].format(name), set()
