"""Refine (4.4): let a dense CRF move the borders of the predicted clusters to those of the image."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.crf.parallel import Job, refine_all
from stages.dataset.store import open_images
from stages.imaging.score_maps import open_scores
from stages.runtime.errors import run
from stages.runtime.params import load
from stages.runtime.progress import say, track
from stages.runtime.rows import RowWriter
from stages.runtime.state import StageState
from stages.runtime.watch import Watch

KEYS = ("refine",)


def main(argv: Sequence[str] | None = None) -> None:
    """Refine the predictions of every validation image."""
    args = _parse(argv)
    params = load(args.params, *KEYS, "runtime")
    images = open_images(args.images, "val")
    scores = open_scores(args.predictions, len(images))
    watch = Watch("refine", args.params, KEYS, [args.images, args.predictions])
    state = StageState(watch, interval_seconds=params.runtime.checkpoint_seconds)
    rows = RowWriter(state, np.uint8, images.shape[:3])
    job = Job(args.images / "val.npy", args.predictions, rows.path, params.refine)
    todo = range(rows.done, len(images))
    for _ in track(
        refine_all(job, todo, params.runtime.num_workers), "refine", total=len(todo), unit="image"
    ):
        rows.advance(1)

    state.check()
    rows.deliver(args.out)
    state.finish()
    say("refine", images=len(images), clusters=scores.shape[1], size_px=images.shape[1])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.refine", description=__doc__)
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of packed images; val.npy is refined"
    )
    parser.add_argument(
        "--predictions", type=Path, required=True, help=".npy, cosine scores float16 [M, K, h, w]"
    )
    parser.add_argument("--out", type=Path, required=True, help=".npy to write, cluster ids uint8 [M, S, S]")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
