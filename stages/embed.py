"""Stage `embed`: compute a global feature of each of the six pyramid views of every image (4.2.1)."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.backbone.checkpoint import load_backbone
from stages.backbone.trunk import Trunk
from stages.core import distributed
from stages.core.device import autocast, place
from stages.core.images import open_images
from stages.core.memory import enough_memory
from stages.imaging.batches import ImageSource, in_order, normalise
from stages.imaging.resample import Boxes, resample
from stages.pseudo_labels.pyramid import VIEWS, view_boxes
from stages.runtime.progress import say, track
from stages.runtime.rows import RowWriter
from stages.runtime.script import run, stage_parser
from stages.runtime.start import start_stage
from stages.runtime.state import StageState
from stages.runtime.watch import Watch
from stages.settings.params import load
from stages.settings.schema import Embed

KEYS = ("crop_ratio", "precision", "deterministic", "backbone", "embed")


@enough_memory("embed.batch_size")
def main(argv: Sequence[str] | None = None) -> None:
    """Embed every view of every image and write the features as one array."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    watch = Watch("embed", args.params, KEYS, [args.images, args.backbone])
    backbone = load_backbone(args.backbone, params.backbone)
    neutral = load(args.params, "device", "runtime")
    device = start_stage("embed", argv, neutral, params)
    if device is None:
        return
    images = ImageSource(open_images(args.images), device)
    state = StageState(watch, interval_seconds=neutral.runtime.checkpoint_seconds)
    rows = RowWriter(state, np.float32, (len(images), len(VIEWS), backbone.channels[-1]))
    say("embed", images=len(images), views=len(VIEWS), done_before=rows.done)
    batches = rows.left(in_order(len(images), params.embed.batch_size))
    features = embed_views(
        backbone,
        images,
        params.embed,
        batches=distributed.in_turn(batches),
        crop_ratio=params.crop_ratio,
        precision=params.precision,
    )
    rows.collect(features, [len(batch) for batch in batches])

    if distributed.is_leader():
        state.check()
        rows.deliver(args.out)
        state.finish()
    distributed.leave()


def crop_boxes(views: Tensor, crop_ratio: float, centre_ratio: float = 1.0) -> Boxes:
    """Return the crop box of one view per image.

    Args:
        views: [N] indices into `VIEWS`.
        crop_ratio: side of the five crops, as a fraction of the image side.
        centre_ratio: side of the center crop of each view, as a fraction of the view (A.1: 224 of 256).
    """
    top, left, height, width = view_boxes(crop_ratio)[views].unbind(1)
    margin = (1 - centre_ratio) / 2
    return Boxes(
        top + margin * height,
        left + margin * width,
        centre_ratio * height,
        centre_ratio * width,
        torch.zeros(len(views)),
    )


@torch.no_grad()
def embed_views(
    backbone: Trunk,
    images: ImageSource,
    settings: Embed,
    *,
    batches: Sequence[Int[Tensor, " B"]],
    crop_ratio: float,
    precision: str,
) -> Iterator[Float[Tensor, "B 6 D"]]:
    """Yield the features of all six views of each image, as float32 on their device, batch by batch.

    Each view is resized and center-cropped, as in the evaluation of the self-supervised models (A.1).
    Features are not normalized, because the projection heads and classifiers of `label` need their length.

    Args:
        backbone: pretrained trunk; runs in evaluation mode.
        images: N images.
        settings: side of the trunk input and center-crop ratio.
        batches: indices of the images of each batch.
        crop_ratio: side of the five crops, as a fraction of the image side.
        precision: precision of the forward pass.
    """
    backbone = place(backbone, images.device).eval()
    side = settings.image_px
    for image in track(images.batches(batches), "embed", total=len(batches), unit="batch"):
        features = []
        for view in range(len(VIEWS)):
            boxes = crop_boxes(torch.full((len(image),), view), crop_ratio, settings.centre_ratio)
            crop = resample(image, boxes.to(images.device), (side, side))
            with autocast(images.device, precision):
                features.append(backbone.global_feature(normalise(crop)))
        yield torch.stack(features, 1)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = stage_parser("embed", __doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of packed images from `prepare`")
    parser.add_argument("--backbone", type=Path, required=True, help="pretrained backbone from `pretrain`")
    parser.add_argument(
        "--out", type=Path, required=True, help="output: float32 array [images, 6, features] (.npy)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
