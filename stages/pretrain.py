"""Stage `pretrain`: a backbone that tells images apart, trained here or taken from a file (4.1, 5.1)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stages.backbone.checkpoint import save_backbone
from stages.checkpoints.published import init_path, read_start, start_trunk
from stages.core import distributed
from stages.core.artefacts import write_csv, write_json
from stages.core.device import choose_device
from stages.core.images import open_images
from stages.imaging.batches import ImageSource
from stages.pretraining.pretrainer import Pretraining
from stages.runtime.environment import describe_environment
from stages.runtime.launch import launch
from stages.runtime.progress import say
from stages.runtime.state import StageState
from stages.runtime.watch import Watch
from stages.settings.errors import run
from stages.settings.params import check_data_size, load

KEYS = ("seed", "precision", "compile", "backbone", "pretrain")
UNTRAINED = ("none", "supervised")  # methods that take a model as it is


def main(argv: Sequence[str] | None = None) -> None:
    """Read the packed images, pretrain, write the backbone and the history."""
    parser = argparse.ArgumentParser(prog="python -m stages.pretrain", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of packed images, of `prepare`")
    parser.add_argument("--out", type=Path, required=True, help="backbone to write (.safetensors)")
    parser.add_argument("--history", type=Path, required=True, help="figures of each epoch to write (.csv)")
    parser.add_argument(
        "--metrics", type=Path, required=True, help="figures of the last epoch to write (.json)"
    )
    args = parser.parse_args(argv)

    params, neutral = load(args.params, *KEYS), load(args.params, "device", "runtime")
    images = open_images(args.images)
    check_data_size(args.params, len(images))
    start = read_start(params.pretrain, params.backbone)
    trains = params.pretrain.method not in UNTRAINED
    arguments = sys.argv[1:] if argv is None else argv
    if trains and launch("stages.pretrain", arguments, neutral.runtime.nproc, neutral.device):
        return
    device = distributed.join(choose_device(neutral.device))
    distributed.check_batch("pretrain.batch_size", params.pretrain.batch_size)
    watch = Watch("pretrain", args.params, KEYS, [args.images, *init_path(params.pretrain)])
    state = StageState(
        watch,
        interval_seconds=neutral.runtime.checkpoint_seconds,
        is_leader=distributed.is_leader(),
    )
    heads = {} if start is None else start.heads
    if trains:
        pretraining = Pretraining(
            params.pretrain,
            params.backbone,
            start,
            num_images=len(images),
            seed=params.seed,
            precision=params.precision,
            device=device,
            compiled=params.compile,
        )
        history = pretraining.run(ImageSource(images, device), state)
        backbone, figures = pretraining.backbone, pretraining.summary(history)
        if not history.empty:  # heads of a checkpoint speak of its features, and training moved these
            heads = pretraining.heads
    else:
        say("pretrain", method=params.pretrain.method, epochs="none, the model is taken as it is")
        backbone, figures = start_trunk(params.backbone, start, params.seed), {}
        history = pd.DataFrame(columns=["epoch", "loss"])

    init = {} if start is None else {"init": start.report()}
    if distributed.is_leader():
        state.check()
        save_backbone(args.out, backbone, params.backbone, heads)
        write_csv(args.history, history)
        write_json(
            args.metrics, {"pretrain": {**figures, **init, "environment": describe_environment(device)}}
        )
        state.finish()
    distributed.leave()


if __name__ == "__main__":
    run(main)
