"""Stage `predict`: score every pixel of the validation images for every cluster (4.1)."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from stages.core.device import choose_device, place
from stages.core.images import open_images
from stages.core.tensors import read_tensors
from stages.imaging.batches import ImageSource, in_order
from stages.runtime.progress import track
from stages.runtime.script import run
from stages.runtime.state import RowWriter, StageState
from stages.runtime.watch import Watch
from stages.segmenter.network import Segmenter, load_segmenter, unit_pixels
from stages.segmenter.pixels import pixel_logits
from stages.settings.errors import UserError
from stages.settings.params import load

KEYS = ("size_px", "precision", "predict")


def main(argv: Sequence[str] | None = None) -> None:
    """Score the images batch by batch and write the scores."""
    parser = argparse.ArgumentParser(prog="python -m stages.predict", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of packed images from `prepare`")
    parser.add_argument("--segmenter", type=Path, required=True, help="trained segmenter from `train`")
    parser.add_argument("--centroids", type=Path, required=True, help="pixel centroids from `cluster`")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="output: float16 scores [images, clusters, rows, columns] at feature resolution (.npy)",
    )
    args = parser.parse_args(argv)

    params = load(args.params, *KEYS)
    segmenter, _ = load_segmenter(args.segmenter)
    centroids = read_tensors(args.centroids, "centroids")[0]["centroids"]
    if centroids.shape[1] != segmenter.decoder.dim:
        raise UserError(
            f"{args.centroids}: centroids have {centroids.shape[1]} features, but {args.segmenter} computes "
            f"{segmenter.decoder.dim}; run `dvc repro cluster`"
        )
    neutral = load(args.params, "device", "runtime")
    device = choose_device(neutral.device)
    images = ImageSource(open_images(args.images), device)
    side = params.size_px // segmenter.feature_stride
    watch = Watch("predict", args.params, KEYS, [args.images, args.segmenter, args.centroids])
    state = StageState(watch, interval_seconds=neutral.runtime.checkpoint_seconds)
    rows = RowWriter(state, np.float16, (len(images), len(centroids), side, side))
    for scores in score_images(
        place(segmenter, device),
        images,
        centroids.to(device),
        first=rows.done,
        batch_size=params.predict.batch_size,
        precision=params.precision,
    ):
        rows.append(scores.numpy())

    state.check()
    rows.deliver(args.out)
    state.finish()


def score_images(
    segmenter: Segmenter,
    images: ImageSource,
    centroids: Float[Tensor, "K D"],
    *,
    batch_size: int,
    precision: str,
    first: int = 0,
) -> Iterator[Float[Tensor, "B K H W"]]:
    """Yield the dot product of every unit-length pixel feature with every centroid, batch by batch.

    For unit-length centroids this is the cosine similarity. Scores are on the CPU, at feature-map resolution.

    Args:
        segmenter: trained network, on the device of `images`.
        images: N images.
        centroids: K centroids, on the same device.
        batch_size: images per forward pass.
        precision: precision of the forward pass.
        first: index of the first image; a multiple of the batch size.
    """
    batches = in_order(len(images), batch_size)[-(-first // batch_size) :]
    for image in track(images.batches(batches), "predict", total=len(batches), unit="batch"):
        scores = pixel_logits(unit_pixels(segmenter, image, precision), centroids, "dot")
        yield scores.permute(0, 3, 1, 2).cpu()


if __name__ == "__main__":
    run(main)
