"""Stage `pretrain`: train a self-supervised backbone, or load one from a checkpoint (4.1, 5.1)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from torch import Tensor

from stages.backbone.checkpoint import save_backbone
from stages.backbone.trunk import Trunk
from stages.checkpoints.published import Published, read_start, start_trunk
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
from stages.pretraining.pretrainer import EPOCH_FIGURES, FIGURES, Pretrainer
from stages.runtime.environment import describe_environment
from stages.runtime.progress import say, track
from stages.runtime.script import run
from stages.runtime.start import start_stage
from stages.runtime.state import StageState
from stages.runtime.watch import Watch
from stages.settings.params import check_data_size, check_heads, load

KEYS = ("seed", "precision", "deterministic", "compile", "backbone", "pretrain")
Result = tuple[Trunk, dict[str, Tensor], pd.DataFrame, dict[str, Any]]  # backbone, heads, history, summary


def main(argv: Sequence[str] | None = None) -> None:
    """Pretrain on the packed images and write the backbone, the training history and the metrics."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    size = "batch_size" if params.pretrain.method == "slotcon" else "micro_batch"  # which slotcon cannot have
    with enough_memory(f"pretrain.{size}"):
        _run(args, argv, params)


def _run(args: argparse.Namespace, argv: Sequence[str] | None, params: SimpleNamespace) -> None:
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
    state = StageState(watch, interval_seconds=neutral.runtime.checkpoint_seconds)
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
    pretrainer: Pretrainer, images: ImageSource, params: SimpleNamespace, state: StageState
) -> pd.DataFrame:
    """Train up to the last epoch; resume from the saved state of an interrupted run.

    Args:
        pretrainer: networks and optimizer.
        images: all training images.
        params: `seed` and `pretrain` of params.yaml.
        state: saved state to resume from and to update.

    Returns:
        One row of training metrics per epoch.

    Raises:
        UserError: the loss is not a number.
    """
    settings, history = params.pretrain, History(FIGURES, images.device)
    remedy = NAN_CURES[settings.method]
    epoch, step = state.resume(pretrainer, history)
    while epoch < settings.epochs:
        order = torch_generator(params.seed, "pretrain", "order", epoch)
        batches = shuffled(len(images), settings.batch_size, order)
        left = [distributed.share(rows) for rows in batches[step:]]
        what = f"pretrain epoch {epoch + 1}"
        for image in track(images.batches(left), what, total=len(left), unit="batch"):
            history.add(pretrainer.train_step(image, epoch, step, len(batches)))
            step += 1
            if state.is_due():
                history.check_finite("pretrain", step, remedy)
                state.save_step(pretrainer, history, epoch, step)
        history.check_finite("pretrain", step, remedy)
        row = history.end_epoch(pretrainer.epoch_figures(), len(batches))
        epoch, step = epoch + 1, 0
        say("pretrain", **{**row, "epoch": f"{epoch}/{settings.epochs}"})
        pretrainer.warn(epoch, row)
    return history.table(EPOCH_FIGURES)


def _trained(
    images: ImageSource,
    start: Published | None,
    params: SimpleNamespace,
    state: StageState,
    *,
    cuda_graph: Wish,
) -> Result:
    pretrainer = Pretrainer(
        params.pretrain,
        params.backbone,
        start,
        num_images=len(images),
        seed=params.seed,
        precision=params.precision,
        device=images.device,
        compiled=params.compile,
        cuda_graph=cuda_graph,
    )
    history = pretrain(pretrainer, images, params, state)
    # Training changes the features, so the heads of the initial checkpoint no longer apply.
    heads = pretrainer.heads if not history.empty else {} if start is None else start.heads
    return pretrainer.backbone, heads, history, pretrainer.summary(history)


def _untrained(start: Published | None, params: SimpleNamespace) -> Result:
    say("pretrain", method=params.pretrain.method, epochs="none, the initial model is used unchanged")
    heads = {} if start is None else start.heads
    history = pd.DataFrame(columns=["epoch", "loss"])
    return start_trunk(params.backbone, start, params.seed), heads, history, {}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.pretrain", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
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
