"""Stage `pretrain`: a backbone that tells the training images apart, without any label (4.1, 5.1)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.contrast.pretraining import Pretraining
from stages.dataset.store import open_images
from stages.imaging.source import ImageSource
from stages.nets.checkpoint import save_backbone
from stages.runtime import distributed
from stages.runtime.artefacts import write_csv, write_json
from stages.runtime.device import choose_device
from stages.runtime.errors import run
from stages.runtime.fit import check_data_size
from stages.runtime.launch import launch
from stages.runtime.params import load
from stages.runtime.state import StageState

KEYS = ("seed", "precision", "backbone", "pretrain")


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
    images = open_images(args.images, "train")
    check_data_size(args.params, len(images))
    arguments = sys.argv[1:] if argv is None else argv
    if launch("stages.pretrain", arguments, neutral.runtime.nproc, neutral.device):
        return
    device = distributed.join(choose_device(neutral.device))
    distributed.check_batch("pretrain.batch_size", params.pretrain.batch_size)
    state = StageState(
        "pretrain",
        lambda: vars(load(args.params, *KEYS)),
        [args.images],
        interval_seconds=neutral.runtime.checkpoint_seconds,
        is_leader=distributed.is_leader(),
    )
    pretraining = Pretraining(
        params.pretrain,
        params.backbone,
        num_images=len(images),
        seed=params.seed,
        precision=params.precision,
        device=device,
    )
    history = pretraining.run(ImageSource(images, device), state)

    if distributed.is_leader():
        state.check()
        save_backbone(args.out, pretraining.backbone, params.backbone, pretraining.heads)
        write_csv(args.history, history)
        write_json(args.metrics, {"pretrain": pretraining.summary(history)})
        state.finish()
    distributed.leave()


if __name__ == "__main__":
    run(main)
