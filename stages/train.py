"""Stage `train`: alternate pixel clustering and training, guided by the kept views (3, 4.1 to 4.3)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.backbone.checkpoint import load_backbone
from stages.core import distributed
from stages.core.artefacts import read_array, read_metrics, write_csv, write_metrics
from stages.core.device import place, torch_generator
from stages.core.history import History
from stages.core.images import open_images
from stages.core.memory import enough_memory
from stages.core.repository import start_path
from stages.imaging.batches import ImageSource, shuffled
from stages.runtime.environment import describe_environment
from stages.runtime.progress import say, track
from stages.runtime.script import run, stage_parser
from stages.runtime.start import start_stage
from stages.runtime.state import StageState, restore
from stages.runtime.watch import Watch
from stages.segmenter.segmenter_file import describe_segmenter, save_segmenter, start_from
from stages.settings.data_size import check_data_size
from stages.settings.errors import UserError
from stages.settings.params import load
from stages.settings.schema import Params
from stages.training.building import build_segmenter, build_trainer
from stages.training.guidance import LabelFigures, guidance_weight
from stages.training.trainer import FIGURES, MEASURED_IN, Trainer

KEYS = (
    "seed", "size_px", "global_k", "pixel_k", "crop_ratio", "precision", "deterministic", "compile",
    "backbone", "train",
)  # fmt: skip
PINS = ["train.init_sha256"]  # a check, which changes no weight
REMEDY = "lower train.lr"  # for a loss of NaN or infinity


@enough_memory("train.micro_batch")
def main(argv: Sequence[str] | None = None) -> None:
    """Train the segmenter and write it with its training history and metrics."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    init_path = start_path(params.train.init)
    inputs = [args.images, args.views, args.label_metrics, args.backbone, init_path]
    watch = Watch("train", args.params, KEYS, inputs)
    neutral = load(args.params, "device", "runtime")
    array, kept_views = open_images(args.images), read_array(args.views)
    if len(kept_views) != len(array):
        raise UserError(
            f"{args.views}: has {len(kept_views)} images, but {args.images} has {len(array)}; run `dvc repro`"
        )
    check_data_size(args.params, len(array))
    label_figures = read_label_figures(args.label_metrics)
    weight = guidance_weight(params.train.image_loss.weight, label_figures, kept_views)
    segmenter = build_segmenter(load_backbone(args.backbone, params.backbone), params, weight)
    init: dict[str, Any] = {}
    if init_path is not None:
        init = {"init": start_from(init_path, segmenter, params.train.init_sha256)}
        say("train", init=init_path, **init["init"])
    device = start_stage("train", argv, neutral, params)
    if device is None:
        return
    distributed.check_batch("train", params.train.batch_size, params.train.micro_batch)
    state = StageState(watch, interval_seconds=neutral.runtime.checkpoint_seconds, pins=PINS)
    trainer = build_trainer(
        place(segmenter, device), kept_views, params, weight, cuda_graph=neutral.runtime.cuda_graph
    )
    say(
        "train", images=len(array), epochs=params.train.epochs, batch_size=params.train.batch_size,
        guidance_weight=weight, **{f"label.{name}": value for name, value in label_figures._asdict().items()},
    )  # fmt: skip
    history = train(trainer, ImageSource(array, device), params, state)

    if distributed.is_leader():
        state.check()
        about = describe_segmenter(params.backbone, params.train, params.size_px)
        save_segmenter(args.out, segmenter, trainer.centroids(), about)
        write_csv(args.history, history)
        figures = {**history.iloc[-1].dropna().to_dict(), **trainer.clusters(), **init}
        write_metrics(args.metrics, {"train": {**figures, "environment": describe_environment(device)}})
        state.finish()
    distributed.leave()


def train(trainer: Trainer, images: ImageSource, params: Params, state: StageState) -> pd.DataFrame:
    """Train up to the last epoch; resume from the saved state of an interrupted run.

    Args:
        trainer: network and optimizer.
        images: all training images.
        params: `seed` and `train` of params.yaml.
        state: saved state to resume from and to update.

    Returns:
        One row of training metrics per epoch.

    Raises:
        UserError: the loss is not a number.
    """
    settings, history = params.train, History(FIGURES, images.device, MEASURED_IN)
    epoch, step = restore(state.load(), trainer, history)
    while epoch < settings.epochs:
        order = torch_generator(params.seed, "train", "order", epoch)
        batches = shuffled(len(images), settings.batch_size, order)
        if step == 0:
            with enough_memory("train.batch_size"):  # k-means takes whole batches, whatever micro_batch is
                trainer.start_epoch(images, batches, epoch)
        left = [distributed.share(rows) for rows in batches[step:]]
        what = f"train epoch {epoch + 1}"
        for image in track(images.batches(left), what, total=len(left), unit="batch"):
            history.add(trainer.train_step(image, batches[step], epoch, step, len(batches)))
            step += 1
            if state.is_due():
                history.check_finite("train", step, REMEDY)
                state.save_step(trainer, history, epoch, step)
        history.check_finite("train", step, REMEDY)
        row = history.end_epoch(trainer.epoch_figures(images), len(batches))
        say("train", **{**row, "epoch": f"{epoch + 1}/{settings.epochs}"})
        epoch, step = epoch + 1, 0
    return history.table(trainer.names_of_epoch_figures())


def read_label_figures(path: Path) -> LabelFigures:
    """Read what the metrics of `label` say of the pseudo-labels.

    Raises:
        UserError: they lack a figure.
    """
    figures = read_metrics(path).get("label", {})
    for name in LabelFigures._fields:
        if name not in figures:
            raise UserError(f"{path}: has no label.{name}; run `dvc repro label` to make it again")
    return LabelFigures(*(float(figures[name]) for name in LabelFigures._fields))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = stage_parser("train", __doc__)
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of packed training images from `prepare`"
    )
    parser.add_argument(
        "--views", type=Path, required=True, help="pseudo-labels of the kept views from `select_views`"
    )
    parser.add_argument(
        "--label-metrics",
        type=Path,
        required=True,
        help="figures of the pseudo-labels from `label`, for the weight `auto`",
    )
    parser.add_argument("--backbone", type=Path, required=True, help="pretrained backbone from `pretrain`")
    parser.add_argument("--out", type=Path, required=True, help="output: segmenter (.safetensors)")
    parser.add_argument("--history", type=Path, required=True, help="output: metrics of each epoch (.csv)")
    parser.add_argument(
        "--metrics", type=Path, required=True, help="output: metrics of the last epoch (.json)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
