"""Stage `pretrain`: train a self-supervised backbone, or load one from a checkpoint (4.1, 5.1)."""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from stages.backbone.checkpoint import save_backbone
from stages.backbone.trunk import Trunk
from stages.checkpoints.published import Published, as_start, read_start, start_trunk
from stages.core import distributed
from stages.core.artefacts import write_csv, write_metrics
from stages.core.device import torch_generator
from stages.core.graph import Wish
from stages.core.history import History
from stages.core.images import open_images
from stages.core.memory import enough_memory
from stages.core.repository import start_path
from stages.imaging.batches import ImageSource, shuffled
from stages.pretraining.figures import NAN_CURES
from stages.pretraining.methods import phases
from stages.pretraining.pretrainer import EPOCH_FIGURES, FIGURES, Pretrainer
from stages.runtime.environment import describe_environment
from stages.runtime.progress import say, track
from stages.runtime.script import run, stage_parser
from stages.runtime.start import start_stage
from stages.runtime.state import StageState, restore
from stages.runtime.watch import Watch
from stages.settings.data_size import check_data_size, check_heads
from stages.settings.params import load
from stages.settings.schema import Params

KEYS = ("seed", "precision", "deterministic", "compile", "backbone", "pretrain")
PINS = ["pretrain.init_sha256"]  # a check, which changes no weight
Result = tuple[Trunk, dict[str, Tensor], pd.DataFrame, dict[str, Any]]  # backbone, heads, history, summary


def main(argv: Sequence[str] | None = None) -> None:
    """Pretrain on the packed images and write the backbone, the training history and the metrics."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    size = "batch_size" if params.pretrain.method == "slotcon" else "micro_batch"  # which slotcon cannot have
    with enough_memory(f"pretrain.{size}"):
        _run(args, argv, params)


def _run(args: argparse.Namespace, argv: Sequence[str] | None, params: Params) -> None:
    watch = Watch("pretrain", args.params, KEYS, [args.images, start_path(params.pretrain.init)])
    neutral = load(args.params, "device", "runtime")
    array = open_images(args.images)
    check_data_size(args.params, len(array))
    check_heads(args.params)
    start = read_start(params.pretrain, params.backbone)
    device = start_stage("pretrain", argv, neutral, params, alone=not params.pretrain.trains)
    if device is None:
        return
    distributed.check_batch("pretrain", params.pretrain.batch_size, params.pretrain.micro_batch)
    state = StageState(watch, interval_seconds=neutral.runtime.checkpoint_seconds, pins=PINS)
    if params.pretrain.trains:
        images = ImageSource(array, device)
        backbone, heads, history, figures = _trained(
            images, start, params, state, cuda_graph=neutral.runtime.cuda_graph
        )
    else:
        backbone, heads, history, figures = _untrained(start, params)

    if distributed.is_leader():
        state.check()
        save_backbone(args.out, backbone, params.backbone, heads)
        write_csv(args.history, history)
        init = {} if start is None else {"init": start.report()}
        environment = describe_environment(device)
        write_metrics(args.metrics, {"pretrain": {**figures, **init, "environment": environment}})
        state.finish()
    distributed.leave()


def pretrain(
    pretrainer: Pretrainer,
    images: ImageSource,
    history: History,
    state: StageState,
    seed: int,
    *,
    before: int = 0,
    at: tuple[int, int] = (0, 0),
) -> None:
    """Train one phase up to its last epoch.

    Args:
        pretrainer: networks and optimizer.
        images: all training images.
        history: gets one row of training metrics per epoch.
        state: saved state to update.
        seed: `seed` of params.yaml.
        before: epochs of earlier phases.
        at: next epoch and step of this phase.

    Raises:
        UserError: the loss is not a number.
    """
    settings, (epoch, step) = pretrainer.settings, at
    remedy = NAN_CURES[settings.method]
    while epoch < settings.epochs:
        order = torch_generator(seed, "pretrain", "order", epoch)
        batches = shuffled(len(images), settings.batch_size, order)
        left = [distributed.share(rows) for rows in batches[step:]]
        what = f"pretrain epoch {epoch + 1}"
        for image in track(images.batches(left), what, total=len(left), unit="batch"):
            history.add(pretrainer.train_step(image, epoch, step, len(batches)))
            step += 1
            if state.is_due():
                history.check_finite("pretrain", step, remedy)
                state.save_step(pretrainer, history, before + epoch, step)
        history.check_finite("pretrain", step, remedy)
        row = history.end_epoch(pretrainer.epoch_figures(), len(batches))
        epoch, step = epoch + 1, 0
        say("pretrain", **{**row, "epoch": f"{epoch}/{settings.epochs}"})
        pretrainer.warn(epoch, row)


def _trained(
    images: ImageSource,
    start: Published | None,
    params: Params,
    state: StageState,
    *,
    cuda_graph: Wish,
) -> Result:
    """Train all phases, each from the backbone of the one before it; resume an interrupted run."""
    history, saved, before = History(FIGURES, images.device), state.load(), 0
    for settings in phases(params.pretrain):
        if saved is None or saved["epoch"] < before + settings.epochs:
            say("pretrain", method=settings.method, epochs=settings.epochs)
            pretrainer = Pretrainer(
                settings,
                params.backbone,
                start,
                num_images=len(images),
                seed=params.seed,
                precision=params.precision,
                device=images.device,
                compiled=params.compile,
                cuda_graph=cuda_graph,
            )
            epoch, step = restore(saved, pretrainer, history)
            at, saved = (max(0, epoch - before), step), None
            pretrain(pretrainer, images, history, state, params.seed, before=before, at=at)
            # Training changes the features, so the heads of the initial checkpoint no longer apply.
            heads = pretrainer.heads if settings.epochs else _heads_of(start, params)
            backbone, summary = pretrainer.backbone, pretrainer.summary(history.table(EPOCH_FIGURES, before))
            start = as_start(backbone, heads)
            # A pretrainer and the graph of its step hold each other, and gradients lie in the graph's memory.
            del pretrainer
            backbone.zero_grad()
            gc.collect()
        before += settings.epochs
    return backbone, heads, history.table(EPOCH_FIGURES), summary


def _untrained(start: Published | None, params: Params) -> Result:
    say("pretrain", method=params.pretrain.method, epochs="none, the initial model is used unchanged")
    history = pd.DataFrame(columns=["epoch", "loss"])
    return start_trunk(params.backbone, start, params.seed), _heads_of(start, params), history, {}


def _heads_of(start: Published | None, params: Params) -> dict[str, Tensor]:
    return {} if start is None else start.heads_for(params.pretrain.method)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = stage_parser("pretrain", __doc__)
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of packed training images from `prepare`"
    )
    parser.add_argument("--out", type=Path, required=True, help="output: backbone (.safetensors)")
    parser.add_argument("--history", type=Path, required=True, help="output: metrics of each epoch (.csv)")
    parser.add_argument(
        "--metrics", type=Path, required=True, help="output: metrics of the last epoch (.json)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
