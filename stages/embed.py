"""Stage `embed`: one global feature for each of the six pyramid views of every training image (4.2.1)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.dataset.store import open_images
from stages.imaging.pyramid import VIEWS
from stages.imaging.source import ImageSource
from stages.nets.checkpoint import load_backbone
from stages.pyramid.embedding import embed_views
from stages.runtime.device import choose_device
from stages.runtime.errors import run
from stages.runtime.params import load
from stages.runtime.rows import RowWriter
from stages.runtime.state import StageState
from stages.runtime.watch import Watch

KEYS = ("size_px", "crop_ratio", "precision", "backbone", "embed")


def main(argv: Sequence[str] | None = None) -> None:
    """Read images and backbone, embed every view, write one array."""
    parser = argparse.ArgumentParser(prog="python -m stages.embed", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of packed images, of `prepare`")
    parser.add_argument("--backbone", type=Path, required=True, help="pretrained backbone, of `pretrain`")
    parser.add_argument(
        "--out", type=Path, required=True, help="float32 array [images, 6, features] to write (.npy)"
    )
    args = parser.parse_args(argv)

    params = load(args.params, *KEYS)
    backbone = load_backbone(args.backbone, params.backbone)
    neutral = load(args.params, "device", "runtime")
    device = choose_device(neutral.device)
    images = ImageSource(open_images(args.images, "train"), device)
    watch = Watch("embed", args.params, KEYS, [args.images, args.backbone])
    state = StageState(watch, interval_seconds=neutral.runtime.checkpoint_seconds)
    rows = RowWriter(state, np.float32, (len(images), len(VIEWS), backbone.channels[-1]))
    for features in embed_views(
        backbone,
        images,
        params.embed,
        first=rows.done,
        crop_ratio=params.crop_ratio,
        size_px=params.size_px,
        precision=params.precision,
    ):
        rows.append(features.numpy())

    state.check()
    rows.deliver(args.out)
    state.finish()


if __name__ == "__main__":
    run(main)
