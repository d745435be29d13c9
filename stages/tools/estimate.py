"""How long `dvc repro` will take on this machine: a few steps at the sizes of params.yaml, extrapolated.

Steps run on random images, in whole batches; on a CPU in smaller ones if the images are large, which takes
less time and memory and overestimates a little. The first step of a kind is not counted. The range goes from
the fastest step to the slowest with a margin, for what is not measured and for a machine that does other
things too.
"""

import contextlib
import functools
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64

from stages.backbone.checkpoint import build_backbone, describe
from stages.clustering.kmeans import KMeans
from stages.core.device import choose_device, place, set_numerics, torch_generator
from stages.core.graph import WARM_UP
from stages.core.memory import memory_for
from stages.dataset.protocols import square_image
from stages.dataset.source import DataSet
from stages.imaging.batches import ImageSource, shuffled
from stages.postprocessing.dense_crf import mean_field
from stages.pretraining.methods import phases
from stages.pretraining.pretrainer import Pretrainer
from stages.pseudo_labels.pyramid import VIEWS
from stages.runtime.pool import count_cores, heed_quota
from stages.runtime.script import rough_duration
from stages.segmenter.network import Segmenter, pixel_features
from stages.settings.errors import UserError
from stages.settings.schema import Params
from stages.settings.schema_pretrain import Pretrain
from stages.training.building import build_segmenter, build_trainer

CPU_BATCH = 8  # fewest images of a measured step
CPU_PIXELS = 32 * 128**2  # of a measured step
MOST_STEPS, MOST_SECONDS = 4, 10.0  # of one measurement
DECODED = 8  # images that are opened to measure `prepare`
NUM_STAGES = 12  # of dvc.yaml, each a process
KMEANS_RUNS = 2  # of `cluster`; the second tells how stable the first is
MARGIN = 1.3  # of the upper bound


@dataclass(frozen=True)
class Span:
    """Seconds: from `low` to `high`."""

    low: float
    high: float

    def __add__(self, other: "Span") -> "Span":
        return Span(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Span":
        """So many of them."""
        return Span(self.low * factor, self.high * factor)


@memory_for(
    "end other programs that use the GPU, or do not measure: FAST=1 (--no-estimate) and no MINUTES",
    "estimate: ",
)
def estimate(params: Params, data: DataSet) -> dict[str, Span]:
    """Seconds of the long stages, and of all others together."""
    heed_quota()  # torch is loaded by now
    found = {"prepare": _prepare(params, data), "starting the stages": starting_python().times(NUM_STAGES)}
    num_images = len(data.train)
    with contextlib.redirect_stdout(None):  # the lines of a run that is none
        device = choose_device(params.device)
        set_numerics(params.precision, deterministic=params.deterministic)
        images = _random_images(params, device)
        for phase in phases(params.pretrain):
            span = _pretrain(params, phase, images, num_images)
            found["pretrain"] = found.get("pretrain", Span(0, 0)) + span
            gc.collect()  # a pretrainer and the graph of its step hold each other
        segmenter = build_untrained(params, images.device)
        found["train"] = _train(params, images, num_images, segmenter)
        found["others"] = _others(params, images, num_images, len(data.val), segmenter)
    return found


def _random_images(params: Params, device: torch.device) -> ImageSource:
    """Two batches of `train`; on a CPU smaller ones of large images."""
    size = params.train.batch_size
    if device.type != "cuda":
        size = min(size, max(CPU_BATCH, CPU_PIXELS // params.size_px**2))
    side = params.prepare.train_px
    pixels = np.random.default_rng(0).integers(0, 256, (2 * size, side, side, 3), np.uint8)
    return ImageSource(pixels, device)


def describe_estimate(found: dict[str, Span]) -> Iterator[str]:
    """The estimate in words."""
    total = sum(found.values(), Span(0, 0))
    parts = ", ".join(f"{stage} {rough_duration(span.low)}" for stage, span in found.items())
    where = "a GPU" if torch.cuda.is_available() else f"a CPU, torch threads: {torch.get_num_threads()}"
    least, most = rough_duration(total.low), rough_duration(MARGIN * total.high)
    yield f"`dvc repro` will take {least} to {most} here, on {where}"
    yield f"  (at best {parts}; from a few steps on random images)"


def measure(step: Callable[[int], object], device: torch.device, *, steps: int = MOST_STEPS) -> Span:
    """Fastest and slowest of a few steps after those that warm up; a last one counts in any case."""
    start, spent = time.perf_counter(), []
    warm_up = WARM_UP + 1 if device.type == "cuda" else 1
    for number in range(warm_up + steps - 1):
        before = time.perf_counter()
        step(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - before)
        if time.perf_counter() - start > MOST_SECONDS:
            break
    counted = spent[warm_up:] or spent[-1:]
    return Span(min(counted), max(counted))


def _prepare(params: Params, data: DataSet) -> Span:
    """Open, decode and scale images that are spread over the data set; every core does its share."""
    items, settings = (*data.train, *data.val), params.prepare
    spent = []
    for item in items[:: max(1, len(items) // DECODED)][:DECODED]:
        start = time.perf_counter()
        try:
            square_image(data.decode(item).image, settings.train_px, settings.protocol, item.tile)
        except UserError:  # `prepare` names what is damaged
            continue
        spent.append(time.perf_counter() - start)
    workers = params.runtime.num_workers or count_cores()
    mean = sum(spent) / max(1, len(spent))
    return Span(mean, mean).times(len(items) / workers)


@functools.cache
def starting_python() -> Span:
    """A start of Python with what a stage with a network imports; it is most of the time of a short run."""
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, torchvision, pandas"], check=True)
    one = time.perf_counter() - before
    return Span(one, one)


def _pretrain(params: Params, phase: Pretrain, images: ImageSource, num_images: int) -> Span:
    size = len(images) // 2
    pretrainer = build_pretrainer(params, phase, size, num_images, images.device)
    (image,) = images.batches([torch.arange(size)])
    step = measure(lambda number: pretrainer.train_step(image, 0, number, 100), images.device)
    return step.times(phase.epochs * num_images / size)


def build_pretrainer(
    params: Params, phase: Pretrain, size: int, num_images: int, device: torch.device
) -> Pretrainer:
    """A pretrainer for batches of `size` images; in a smaller batch than that of params.yaml as one group."""
    if size == phase.batch_size:
        return _pretrainer(params, phase, num_images, device)
    queue = max(1, phase.queue_size // size) * size
    swav = phase.swav.model_copy(update={"queue_size": 0})
    changes: dict[str, Any] = {"batch_size": size, "queue_size": queue, "bn_splits": 1, "swav": swav}
    return _pretrainer(params, phase.model_copy(update=changes), max(num_images, 2 * size), device)


def _pretrainer(params: Params, settings: Pretrain, num_images: int, device: torch.device) -> Pretrainer:
    return Pretrainer(
        settings, params.backbone, None, num_images=num_images, seed=0, precision=params.precision,
        device=device,
    )  # fmt: skip


def build_untrained(params: Params, device: torch.device) -> Segmenter:
    """The network of `train` with an untrained backbone, on its device; with an image head for `auto`."""
    trunk = build_backbone(describe(params.backbone))
    return place(build_segmenter(trunk, params, weight_of(params)), device)


def random_pseudo_labels(params: Params, num_images: int) -> Int64[np.ndarray, "N V"]:
    """Of the views of each image, with `select_ratio` of them kept and -1 elsewhere."""
    rng, shape = np.random.default_rng(0), (num_images, len(VIEWS))
    return np.where(rng.random(shape) < params.select_ratio, rng.integers(0, params.global_k, shape), -1)


def weight_of(params: Params) -> float:
    """The weight of guidance; any number stands for `auto`, for all take the same time."""
    return 1.0 if params.train.image_loss.weight == "auto" else params.train.image_loss.weight


def _train(params: Params, images: ImageSource, num_images: int, segmenter: Segmenter) -> Span:
    size = len(images) // 2
    settings = params.train.model_copy(update={"batch_size": size})
    # Compiling takes minutes, longer than an estimate should; so a compiled run is estimated without.
    params = params.model_copy(update={"train": settings, "compile": False})
    kept = random_pseudo_labels(params, len(images))
    trainer = build_trainer(segmenter, kept, params, weight_of(params))
    batches = shuffled(len(images), size, torch_generator(0, "estimate"))
    start = measure(lambda _: trainer.start_epoch(images, batches, 0), images.device)
    (image,) = images.batches([batches[0]])
    step = measure(lambda number: trainer.train_step(image, batches[0], 0, number, 100), images.device)
    clustered = num_images
    if settings.clustering.kmeans == "sample":
        clustered = min(settings.clustering.sample_images, num_images)
    an_epoch = start.times(clustered / len(images)) + step.times(num_images / size)
    return an_epoch.times(settings.epochs)


def _others(params: Params, images: ImageSource, num_images: int, num_val: int, segmenter: Segmenter) -> Span:
    """Passes without gradients of embed, cluster and predict, the last k-means, and the CRF of a CPU."""
    side, size = params.size_px, len(images) // 2
    image = torch.rand(size, 3, side, side, device=images.device)
    segmenter.eval()
    one = measure(lambda _: pixel_features(segmenter, image, params.precision), images.device).times(1 / size)
    views = len(VIEWS) * num_images * (params.embed.image_px / side) ** 2
    clustered = num_images
    if params.cluster.kmeans == "sample":
        clustered = min(params.cluster.sample_images, num_images)
    passes = one.times(views + clustered + num_val) + _kmeans(params, clustered, images.device)
    backend = params.refine.backend
    if backend == "none" or (images.device.type == "cuda" and backend != "cpu"):  # on a GPU it takes little
        return passes
    rng = np.random.default_rng(0)
    noise, unary = rng.integers(0, 256, (side, side, 3), np.uint8), rng.random((params.pixel_k, side, side))
    unary = (unary / unary.sum(0)).astype(np.float32)
    refined = measure(lambda _: mean_field(noise, unary, params.refine), images.device)
    workers = params.runtime.num_workers or count_cores()
    return passes + refined.times(num_val / workers)


def _kmeans(params: Params, num_images: int, device: torch.device) -> Span:
    """Both k-means runs of `cluster` on a sample, from one iteration."""
    settings = params.cluster
    if settings.centroids != "fresh" or settings.kmeans != "sample":  # none, or little beside the passes
        return Span(0, 0)
    in_images = num_images * (params.size_px // params.train.feature_stride) ** 2
    num_pixels = min(settings.sample_pixels, in_images)
    points = F.normalize(torch.randn(num_pixels, params.train.fpn_dim, device=device), dim=1)
    once = KMeans(params.pixel_k, iterations=1, restarts=1)
    one = measure(lambda number: once.fit(points, seed=number), device)
    return one.times(KMEANS_RUNS * settings.restarts * settings.iterations)
