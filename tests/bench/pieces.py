"""What `make scale` measures of the networks and of k-means: a few steps of the stages' own code."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stages.backbone.checkpoint import build_backbone, describe
from stages.clustering.kmeans import KMeans, MiniBatchKMeans
from stages.core.artefacts import read_array
from stages.core.device import place, set_numerics, torch_generator
from stages.embed import embed_views
from stages.final_clusters.sampling import sample_pixel_features
from stages.imaging.batches import ImageSource, in_order, shuffled
from stages.predict import score_images
from stages.pretraining.methods import phases
from stages.settings.schema import Params
from stages.settings.schema_pretrain import Pretrain
from stages.tools.estimate import CPU_BATCH, build_pretrainer, build_untrained
from stages.training.clusters import PixelClusterer
from tests.bench.clock import Clock
from tests.bench.meter import Observed, Step, observe
from tests.bench.reading import forget, stored_images
from tests.bench.training import random_trainer

# On a CPU k-means is measured on a part of its points and iterations; both cost alike.
CPU_POINTS, CPU_ITERATIONS = 50_000, 3
NUM_STEPS = 100  # of an epoch, for learning rates and warm-ups
Measured = dict[str, Observed]


def photographs(count: int, side: int) -> np.ndarray:
    """Images [count, side, side, 3] of flat squares with some noise, as hard to code as photographs."""
    rng = np.random.default_rng(0)
    cells = side // 16 + 1
    coarse = rng.integers(16, 240, (count, cells, cells, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    return coarse[:, :side, :side] + rng.integers(0, 12, (count, side, side, 3), np.uint8)


def measure_networks(params: Params, device: torch.device) -> Iterator[tuple[str, Observed]]:
    """The cost of an image in each long stage, and of reading one."""
    set_numerics(params.precision, deterministic=params.deterministic)
    yield "read", _reading(params, device, is_cached=True)
    yield "read from disk", _reading(params, device, is_cached=False)
    if params.pretrain.epochs:
        for phase in phases(params.pretrain):
            yield f"pretrain {phase.method}", _pretraining(params, phase, device)
    yield "embed", _embedding(params, device)
    yield from _training(params, device)
    yield "cluster", _clustering(params, device)
    yield "predict", _predicting(params, device)


def measure_kmeans(params: Params, device: torch.device) -> Iterator[tuple[str, Observed]]:
    """The cost of a point in an iteration, for each stage; and of a point in a mini-batch."""
    width = build_backbone(describe(params.backbone)).channels[-1]
    label, train, cluster = params.label, params.train.clustering, params.cluster
    dim, num_clusters = params.train.fpn_dim, params.pixel_k
    yield "label k-means", _kmeans(label.sample_views, width, params.global_k, label.iterations, device)
    yield "train k-means", _kmeans(train.sample_pixels, dim, num_clusters, train.iterations, device)
    yield "cluster k-means", _kmeans(cluster.sample_pixels, dim, num_clusters, cluster.iterations, device)
    if "minibatch" in (train.kmeans, cluster.kmeans):
        yield "mini-batch", _minibatch(dim, num_clusters, device)


def _size(batch_size: int, device: torch.device) -> int:
    return batch_size if device.type == "cuda" else min(CPU_BATCH, batch_size)


def _images(count: int, side: int, device: torch.device) -> ImageSource:
    return ImageSource(photographs(count, side), device)


def _reading(params: Params, device: torch.device, *, is_cached: bool) -> Observed:
    """By the threads that read where images are too many for the device; memory may hold the file."""
    count = 64
    order = shuffled(count, 16, torch_generator(0, "scale"))
    with stored_images(count, params.prepare.train_px) as path:
        images = ImageSource(read_array(path, memory_map=True), device)
        images.resident = None

        def step(_: int) -> list[int]:
            if not is_cached:
                forget(path)
            return [len(one) for one in images.batches(order)]

        return observe(lambda: step, count, device)


def _pretraining(params: Params, phase: Pretrain, device: torch.device) -> Observed:
    size = _size(phase.batch_size, device)

    def build() -> Step:
        num_images = max(phase.queue_size, 2 * size)
        pretrainer = build_pretrainer(params, phase, size, num_images, device)
        (image,) = _images(size, params.prepare.train_px, device).batches(in_order(size, size))
        return lambda number: pretrainer.train_step(image, 0, number, NUM_STEPS)

    return observe(build, size, device)


def _embedding(params: Params, device: torch.device) -> Observed:
    size = _size(params.embed.batch_size, device)
    settings = params.embed.model_copy(update={"batch_size": size})

    def build() -> Step:
        backbone = place(build_backbone(describe(params.backbone)), device)
        images = _images(size, params.prepare.train_px, device)
        how: dict[str, Any] = {"batches": in_order(size, size), "precision": params.precision}
        how["crop_ratio"] = params.crop_ratio
        return lambda _: list(embed_views(backbone, images, settings, **how))

    return observe(build, size, device)


def _training(params: Params, device: torch.device) -> Iterator[tuple[str, Observed]]:
    """The passes that cluster, the other passes at the start of an epoch, and the steps."""
    size = _size(params.train.batch_size, device)
    clock, source = Clock(), _images(2 * size, params.prepare.train_px, device)
    train = params.train.model_copy(update={"batch_size": size})
    batches = shuffled(len(source), size, torch_generator(0, "scale"))

    def build() -> Step:
        trainer = random_trainer(params.model_copy(update={"train": train}), len(source), device)
        if device.type == "cuda":  # which loads its kernels at first
            trainer.start_epoch(source, batches, 0)
        with clock.timing({"clustering": (PixelClusterer, "cluster"), **KMEANS}):
            clock.wrap("start", trainer.start_epoch)(source, batches, 0)
        (image,) = source.batches(batches[:1])
        return lambda number: trainer.train_step(image, batches[0], 0, number, NUM_STEPS)

    step = observe(build, size, device)
    passes, start = (float(clock.spent[name][0]) for name in ("clustering", "start"))
    yield "train passes", step._replace(seconds=passes / len(source), items=len(source))
    yield "train start", step._replace(seconds=start / size)
    yield "train", step


KMEANS = {"k-means": (KMeans, "fit")}


def _clustering(params: Params, device: torch.device) -> Observed:
    """The passes of `cluster`; k-means apart."""
    settings = params.cluster
    size = _size(settings.batch_size, device)
    per_image = settings.sample_pixels // settings.sample_images
    changes = {"batch_size": size, "sample_images": size, "sample_pixels": max(1, per_image) * size}
    few = params.model_copy(update={"cluster": settings.model_copy(update=changes)})

    def build() -> Step:
        images = _images(size, params.prepare.train_px, device)
        segmenter = build_untrained(params, device).train(settings.batch_norm == "batch")
        return lambda _: sample_pixel_features(segmenter, images, few)

    return observe(build, size, device)


def _predicting(params: Params, device: torch.device) -> Observed:
    size = _size(params.predict.batch_size, device)
    settings = params.predict.model_copy(update={"batch_size": size})

    def build() -> Step:
        images, segmenter = _images(size, params.size_px, device), build_untrained(params, device).eval()
        centroids = torch.from_numpy(unit_points(params.pixel_k, params.train.fpn_dim)).to(device)
        how: dict[str, Any] = {"settings": settings, "batches": in_order(size, size)}
        how["precision"] = params.precision
        return lambda _: list(score_images(segmenter, images, centroids, **how))

    return observe(build, size, device)


def unit_points(count: int, dim: int) -> np.ndarray:
    """Random points of unit length, float32 [count, dim]."""
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
    return F.normalize(values, dim=1).numpy()


def _kmeans(count: int, dim: int, num_clusters: int, iterations: int, device: torch.device) -> Observed:
    if device.type == "cpu":
        count, iterations = min(count, CPU_POINTS), min(iterations, CPU_ITERATIONS)
    count = max(count, num_clusters)

    def build() -> Step:
        kmeans = KMeans(num_clusters, iterations=iterations, restarts=1)
        points = torch.from_numpy(unit_points(count, dim)).to(device)
        return lambda _: kmeans.fit(points, seed=0)

    found = observe(build, count, device)
    return found._replace(seconds=found.seconds / iterations)


def _minibatch(dim: int, num_clusters: int, device: torch.device) -> Observed:
    count = CPU_POINTS

    def build() -> Step:
        kmeans = KMeans(num_clusters, iterations=1, restarts=1, spherical=False)
        points = torch.from_numpy(unit_points(count, dim)).to(device)
        running = MiniBatchKMeans(kmeans, init_batches=1, num_batches=2, seeds=[0])
        running.add(points)
        return lambda _: running.add(points)

    return observe(build, count, device)
