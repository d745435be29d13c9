"""Stage `train`: pixel clustering and training in turn, guided by the kept views (3, 4.1 to 4.3)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages.backbone.checkpoint import load_backbone
from stages.core import distributed
from stages.core.artefacts import read_array, write_csv, write_json
from stages.core.device import choose_device, place
from stages.core.images import open_images
from stages.core.seeds import derive
from stages.imaging.batches import ImageSource
from stages.runtime.environment import describe_environment
from stages.runtime.launch import launch
from stages.runtime.state import StageState
from stages.runtime.watch import Watch
from stages.segmenter.compat import train_settings
from stages.segmenter.network import Segmenter, describe_segmenter, save_segmenter
from stages.settings.errors import UserError, run
from stages.settings.params import check_data_size, load
from stages.training.guidance import Guidance
from stages.training.trainer import Training

KEYS = (
    "compat", "seed", "size_px", "global_k", "pixel_k", "crop_ratio", "precision", "compile",
    "backbone", "train",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Read images, kept views and backbone, train, write the segmenter and the history."""
    parser = argparse.ArgumentParser(prog="python -m stages.train", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of packed images, of `prepare`")
    parser.add_argument(
        "--views", type=Path, required=True, help="pseudo-labels of kept views, of `select_views`"
    )
    parser.add_argument("--backbone", type=Path, required=True, help="pretrained backbone, of `pretrain`")
    parser.add_argument("--out", type=Path, required=True, help="segmenter to write (.safetensors)")
    parser.add_argument("--history", type=Path, required=True, help="figures of each epoch to write (.csv)")
    parser.add_argument(
        "--metrics", type=Path, required=True, help="figures of the last epoch to write (.json)"
    )
    args = parser.parse_args(argv)

    params, neutral = load(args.params, *KEYS), load(args.params, "device", "runtime")
    images, kept_views = open_images(args.images), read_array(args.views)
    if len(kept_views) != len(images):
        raise UserError(
            f"{args.views}: speaks of {len(kept_views)} images, but {args.images} has {len(images)}; "
            "run `dvc repro`"
        )
    check_data_size(args.params, len(images))
    settings = train_settings(params.train, params.compat, images.shape[1])
    backbone = load_backbone(args.backbone, params.backbone)
    arguments = sys.argv[1:] if argv is None else argv
    if launch("stages.train", arguments, neutral.runtime.nproc, neutral.device):
        return
    device = distributed.join(choose_device(neutral.device))
    distributed.check_batch("train.batch_size", settings.batch_size)
    watch = Watch("train", args.params, KEYS, [args.images, args.views, args.backbone])
    state = StageState(
        watch,
        interval_seconds=neutral.runtime.checkpoint_seconds,
        is_leader=distributed.is_leader(),
    )
    torch.manual_seed(derive(params.seed, "train", "weights"))
    segmenter = Segmenter(
        backbone,
        fpn_dim=settings.fpn_dim,
        feature_stride=settings.feature_stride,
        context=settings.context,
        num_view_clusters=params.global_k if settings.image_loss.weight > 0 else 0,
        head=settings.image_loss.head,
        freeze=settings.freeze,
    )
    guidance = Guidance(
        settings.image_loss,
        settings.photometric,
        torch.from_numpy(kept_views.astype(np.int64)),
        num_labels=params.global_k,
        crop_ratio=params.crop_ratio,
        seed=params.seed,
        precision=params.precision,
    )
    training = Training(
        place(segmenter, device),
        settings,
        guidance,
        pixel_k=params.pixel_k,
        size_px=params.size_px,
        seed=params.seed,
        precision=params.precision,
        compiled=params.compile,
    )
    history = training.run(ImageSource(images, device), state)

    if distributed.is_leader():
        state.check()
        about = describe_segmenter(params.backbone, settings, params.size_px)
        save_segmenter(args.out, segmenter, training.centroids(), about)
        write_csv(args.history, history)
        last = history.iloc[-1].dropna().to_dict()
        write_json(
            args.metrics,
            {"train": {**last, **training.clusters(), "environment": describe_environment(device)}},
        )
        state.finish()
    distributed.leave()


if __name__ == "__main__":
    run(main)
