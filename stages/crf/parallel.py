"""The CRF over many images: one process a core, and in the memory of each no more than one image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stages.crf.dense_crf import probabilities, refine_image
from stages.runtime.artefacts import read_array
from stages.runtime.cores import count_cores
from stages.runtime.pool import call_in_order
from stages.runtime.schema import Refine


@dataclass(frozen=True)
class Job:
    """Where the images lie and what to do to them; small, because it travels with every image.

    Attributes:
        images: uint8 [M, S, S, 3].
        predictions: float16 [M, K, h, w].
        refined: uint8 [M, S, S], already of its full size; each image fills its own place.
        settings: of the CRF.
    """

    images: Path
    predictions: Path
    refined: Path
    settings: Refine


def refine_all(job: Job, images: Sequence[int], num_workers: int) -> Iterator[None]:
    """Refine the images of these numbers; yields once for each, in order.

    The result does not depend on `num_workers` (0: one for each core that this process may use).

    Raises:
        UserError: a worker was killed.
    """
    workers = min(num_workers or count_cores(), len(images))
    calls = [(job, index) for index in images]
    yield from call_in_order(_refine_one, calls, workers, prepare_worker=_use_one_thread)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _refine_one(job: Job, index: int) -> None:
    """Refine image `index` and write it to its place."""
    settings = job.settings.model_dump()
    image = read_array(job.images, memory_map=True)[index]
    scores = read_array(job.predictions, memory_map=True)[index]
    unary = probabilities(scores, image.shape[0], settings.pop("temperature"))
    refined = np.load(job.refined, mmap_mode="r+", allow_pickle=False)
    refined[index] = refine_image(image, unary, **settings)
