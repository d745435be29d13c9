"""What `make preset` answers: what it found, and what would make the result better."""

from collections.abc import Iterator

from stages.core.repository import start_path
from stages.dataset.left_out import MOST_EXAMPLES
from stages.dataset.source import DataSet
from stages.settings.schema import Params

FEW_IMAGES = 1000  # below, a published model is likely better than pretraining from scratch (ours)
PUBLISHED = {  # where to get the checkpoints that presets and the commands of docs/benchmarks.md start from
    "moco_v2_800ep_pretrain.pth.tar": (
        "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar"
    ),
    "swav_800ep_pretrain.pth.tar": ("https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"),
    "resnet18-f37072fd.pth": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
}


def found(data: DataSet) -> Iterator[str]:
    """Number of images, what is left out, and notes on the lists and rules."""
    classes = f"{len(data.class_names)} named classes"
    if data.lacks_maps_in:
        classes = f"classes.txt not used: no label maps in {data.lacks_maps_in}"
    yield (
        f"{data.root}: {len(data.train):,} training images, {len(data.val):,} validation images, {classes}"
    )
    for note in data.notes:
        yield f"  {note}"
    for reason, names in sorted(data.left_out.items()):
        yield f"  left out {names.count:,}: {reason} ({names})"
    if any(names.count > MOST_EXAMPLES for names in data.left_out.values()):
        yield "  data/left_out.csv will name all of them, once dvc repro has read the images"


def split(params: Params) -> Iterator[str]:
    """How the images are split, if by a fraction."""
    rule = params.prepare.split
    if rule.by == "fraction":
        yield (
            f"  prepare.split: each image by its content, about {rule.val_fraction:.0%} for validation; it "
            "stays on its side when images are added"
        )


def classes(params: Params, data: DataSet) -> Iterator[str]:
    """Where the number of classes comes from, if there are no labels to say it."""
    if not data.class_names:
        yield (
            f"  pixel_k: {params.pixel_k}, as the preset has it: without labels nothing says how many "
            "classes there are. Change it in params.yaml to about the number of things and materials to tell "
            "apart; docs/photographs.md says how to choose"
        )


def better(params: Params, data: DataSet) -> Iterator[str]:
    """What would make the result better."""
    if len(data.train) < FEW_IMAGES and not params.pretrain.init:
        yield (
            f"  {len(data.train):,} training images are few to pretrain on. A published checkpoint, such as "
            "DINO's ResNet-50 (github.com/facebookresearch/dino: dino_resnet50_pretrain.pth), usually gives "
            "better features (not measured here). In params.yaml, set backbone.arch: resnet50, and in the "
            "section pretrain:"
        )
        yield "    method: none"
        yield "    init: path/to/dino_resnet50_pretrain.pth"


def start(params: Params) -> Iterator[str]:
    """That there is no checkpoint to start from; otherwise it is `pretrain` that says so, after `prepare`."""
    init = params.pretrain.init
    path = start_path(init)
    if path is not None and not path.is_file():
        address = PUBLISHED.get(path.name)
        how = f"curl -Lo {init} {address}" if address else "put the file there, or set pretrain.init"
        yield f"  pretrain.init: {init} does not exist; before `dvc repro`, which needs it: {how}"
