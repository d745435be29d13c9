"""Cluster scores of pixels: reading and upsampling to image size.

Separate, because the CRF, the scoring and the report must use the same upsampled scores.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from stages.core.artefacts import MAKE_AGAIN, read_array
from stages.settings.errors import UserError

MAX_CLUSTERS = 255  # cluster ids are stored as uint8
CHUNK_ELEMENTS = 2**24  # of an upsampled chunk; 64 MB in float32


def open_scores(path: Path, num_images: int | None = None) -> np.ndarray:
    """The scores of `predict`, float16 [M, K, h, w], memory-mapped read-only.

    Cosines in [-1, 1]; or, by the metric of training, negative squared distances.

    Args:
        path: the file.
        num_images: M; None where nothing else says it.

    Raises:
        UserError: the file is missing or damaged, or is not a stack of `num_images` score maps.
    """
    scores = read_array(path, memory_map=True)
    if scores.dtype != np.float16 or scores.ndim != 4 or 0 in scores.shape or scores.shape[1] > MAX_CLUSTERS:
        raise UserError(
            f"{path}: holds {scores.dtype} {list(scores.shape)}, expected scores float16 [M, K, h, w] "
            f"with at most {MAX_CLUSTERS} clusters; {MAKE_AGAIN}"
        )
    if num_images not in (None, len(scores)):
        raise UserError(f"{path}: has scores of {len(scores)} images, expected {num_images}; {MAKE_AGAIN}")
    return scores


def upsample(scores: np.ndarray, size_px: int) -> Float[Tensor, "B K S S"]:
    """Bilinear upsampling of scores [B, K, h, w] to `size_px`, half-pixel centers, in float32.

    Raises:
        UserError: a score is not finite.
    """
    values = torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))
    if not torch.isfinite(values).all():
        raise UserError(
            "predictions: some scores are not finite: the network diverged; lower train.lr or pretrain.lr, "
            "or set precision: float32"
        )
    return functional.interpolate(values, size=(size_px, size_px), mode="bilinear", align_corners=False)


def probabilities(scores: Float[Tensor, "K H W"], temperature: float) -> Float[Tensor, "K H W"]:
    """Probability of each cluster at each pixel, for the unary terms of 4.4.

    The paper gives no formula; ours is softmax(score / temperature) over upsampled scores.

    Args:
        scores: cosines, or by the metric negative squared distances, to each center.
        temperature: low values give confident unaries, so the pairwise terms have less influence.

    Returns:
        In [0, 1], sums to 1 over K.
    """
    return torch.softmax(scores / temperature, dim=0)


def cluster_maps(scores: np.ndarray, size_px: int) -> UInt8[np.ndarray, "B S S"]:
    """The cluster with the highest upsampled score at each pixel; ties go to the lower id."""
    return upsample(scores, size_px).argmax(1).to(torch.uint8).numpy()


def chunks(scores: np.ndarray, size_px: int) -> Iterator[slice]:
    """Runs of images whose upsampled scores fit in `CHUNK_ELEMENTS`, in order."""
    num_images, num_clusters = scores.shape[:2]
    step = max(1, CHUNK_ELEMENTS // (num_clusters * size_px**2))
    yield from (slice(start, min(start + step, num_images)) for start in range(0, num_images, step))
