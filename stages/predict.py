"""Stage `predict`: score every pixel of the validation images for every cluster (4.1)."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from stages.core import distributed
from stages.core.device import place
from stages.core.hashes import file_sha256
from stages.core.images import open_images
from stages.core.memory import enough_memory
from stages.imaging.batches import ImageSource, in_order
from stages.prediction.scored_pixels import scored_pixels
from stages.runtime.progress import say, track
from stages.runtime.rows import RowWriter
from stages.runtime.script import run, stage_parser
from stages.runtime.start import start_stage
from stages.runtime.state import StageState
from stages.runtime.watch import Watch
from stages.segmenter.network import Segmenter
from stages.segmenter.pixels import pixel_logits
from stages.segmenter.segmenter_file import load_final_clusters, load_segmenter
from stages.settings.params import load
from stages.settings.schema import Predict

KEYS = ("size_px", "precision", "deterministic", "predict")
LOWEST = -60_000.0  # score; float16 ends at -65,504


@enough_memory("predict.batch_size")
def main(argv: Sequence[str] | None = None) -> None:
    """Score the images batch by batch and write the scores."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    watch = Watch("predict", args.params, KEYS, [args.images, args.segmenter, args.centroids])
    segmenter, _ = load_segmenter(args.segmenter)
    centroids = load_final_clusters(args.centroids, segmenter, file_sha256(args.segmenter))
    neutral = load(args.params, "device", "runtime")
    device = start_stage("predict", argv, neutral, params)
    if device is None:
        return
    images = ImageSource(open_images(args.images), device)
    side = params.size_px // segmenter.feature_stride
    state = StageState(watch, interval_seconds=neutral.runtime.checkpoint_seconds)
    rows = RowWriter(state, np.float16, (len(images), len(centroids), side, side))
    say("predict", images=len(images), clusters=len(centroids), done_before=rows.done)
    batches = rows.left(in_order(len(images), params.predict.batch_size))
    scores = score_images(
        place(segmenter, device),
        images,
        centroids.to(device),
        batches=distributed.in_turn(batches),
        settings=params.predict,
        precision=params.precision,
    )
    rows.collect(scores, [len(batch) for batch in batches])

    if distributed.is_leader():
        state.check()
        rows.deliver(args.out)
        state.finish()
    distributed.leave()


def score_images(
    segmenter: Segmenter,
    images: ImageSource,
    centroids: Float[Tensor, "K D"],
    *,
    batches: Sequence[Int[Tensor, " B"]],
    settings: Predict,
    precision: str,
) -> Iterator[Float[Tensor, "B K H W"]]:
    """Yield the similarity of every pixel feature to every centroid, batch by batch.

    By the metric of training: the dot product of unit-length features with centroids, which is the cosine if
    these have unit length too; or the negative squared distance, less that of the nearest centroid. Scores
    are float32 on the device of the images, at feature-map resolution.

    Args:
        segmenter: trained network, on the device of `images`.
        images: N images.
        centroids: K centroids, on the same device.
        batches: indices of the images of each batch.
        settings: `predict` of params.yaml.
        precision: precision of the forward pass.
    """
    for image in track(images.batches(batches), "predict", total=len(batches), unit="batch"):
        pixels = scored_pixels(
            segmenter,
            image,
            precision,
            mirror=settings.mirror,
            unit_features=settings.unit_features,
        )
        scores = pixel_logits(pixels, centroids, segmenter.metric)
        if segmenter.metric == "euclidean":  # has no bound; float16 keeps the differences to the best
            scores = (scores - scores.amax(-1, keepdim=True)).clamp_min(LOWEST)
        yield scores.permute(0, 3, 1, 2)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = stage_parser("predict", __doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of packed images from `prepare`")
    parser.add_argument("--segmenter", type=Path, required=True, help="trained segmenter from `train`")
    parser.add_argument("--centroids", type=Path, required=True, help="pixel centroids from `cluster`")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="output: float16 scores [images, clusters, rows, columns] at feature resolution (.npy)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
