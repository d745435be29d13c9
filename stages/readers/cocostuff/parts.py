"""What the owners of published data sets offer, and where: for messages of the readers, and to fetch it."""

from dataclasses import dataclass

COCO = "http://images.cocodataset.org/zips"
COCO_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
CURATED = (
    "https://raw.githubusercontent.com/janghyuncho/PiCIE/fc4e7c193c2ba77a6dbf9f24e5e7cf99da9f528a/curated"
)
LIST = "Coco164kFull_Stuff_Coarse_7"


@dataclass(frozen=True)
class Part:
    """One file that an owner offers.

    Attributes:
        url: where it is.
        what: it is, for people.
        to: its folder below the data set's, where an archive is unpacked and a list is put.
        size_bytes: of the file; None where nobody states it.
        sha256: of the file; empty where nobody states it, and the checksums within an archive have to do.
        brings: the folders of an archive; empty for a file that is used as it is.
    """

    url: str
    what: str
    to: str
    size_bytes: int | None = None
    sha256: str = ""
    brings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rsplit("/", 1)[1]


# Sizes and hashes of the image archives: tensorflow/datasets, url_checksums/coco.txt; of the lists: PiCIE.
COCO_PARTS = {
    "train2017 images": Part(
        f"{COCO}/train2017.zip", "118,287 training images of COCO 2017", "images",
        19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        ("train2017",),
    ),
    "val2017 images": Part(
        f"{COCO}/val2017.zip", "5,000 validation images of COCO 2017", "images",
        815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        ("val2017",),
    ),
    "label maps": Part(
        f"{COCO_STUFF}/stuffthingmaps_trainval2017.zip", "label maps of COCO-Stuff, about 0.7 GB",
        "stuffthingmaps", brings=("train2017", "val2017"),
    ),
    "train2017 list": Part(
        f"{CURATED}/train2017/{LIST}.txt", "the 49,629 training images that are used",
        "curated/train2017", 645_177, "3b837594a81880a70f177afab906fc45147d8b9c2c4f51132f784e41941812f9",
    ),
    "val2017 list": Part(
        f"{CURATED}/val2017/{LIST}.txt", "the 2,175 validation images that are used",
        "curated/val2017", 28_275, "7c629734c88f1a74bba6311e01d4d9fe976df84f07cb4fc86452ce5116e51655",
    ),
}  # fmt: skip
