"""k-means and the dense CRF at the paper's sizes, on the device and beside what a CPU does."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn import functional

from stages.clustering.kmeans import KMeans, MiniBatchKMeans
from stages.postprocessing.dense_crf import mean_field
from stages.postprocessing.exact_crf import exact_mean_field
from tests.bench.lines import Line
from tests.bench.pieces import unit_points
from tests.datasets import read_preset

CPU = torch.device("cpu")
PAPER = "cocostuff27"
BATCH_SHARE = {"cpu": 16, "cuda": 1}  # a mini-batch is measured on one in so many of its points
NUM_IMAGES = 49_629  # of COCO-Stuff, in a clustering of all pixels
# Of `clouds`: correlation of a color with gray; standard deviation, of 0..255; how fast amplitudes fall with
# their frequency. Chosen so that pixel blocks are as near each other as in photographs.
GRAY_SHARE, CONTRAST, FALL = 0.95, 30, 1.5


def clustering(device: torch.device, turns: int, *, compiled: bool = False) -> Iterator[Line]:
    """Seconds of one clustering of a view: over a sample, and over all pixels as PiCIE does."""
    params = read_preset(PAPER)
    settings, dim = params.train.clustering, params.train.fpn_dim
    count = settings.sample_pixels
    found = {
        one: _sampled(count, dim, params.pixel_k, settings.iterations, one, turns)
        for one in dict.fromkeys((device, CPU))
    }
    what = f"{count:,} points of {dim} features, {params.pixel_k} clusters, {settings.iterations} iterations"
    yield _beside_cpu(f"k-means over a sample, {what}", found[device], found[CPU], device)
    params = read_preset(PAPER, "picie")
    settings = params.train.clustering
    size = settings.batches_per_update * params.train.batch_size
    points = size * (params.size_px // params.train.feature_stride) ** 2
    updates = NUM_IMAGES // size - settings.init_batches
    found = {
        one: _minibatch(points, dim, params.pixel_k, settings.iterations, settings.init_batches, updates, one)
        for one in found
    }
    what = f"{NUM_IMAGES:,} images in batches of {size}, {points:,} points each, projected from two"
    yield _beside_cpu(
        f"mini-batch k-means over all pixels (PiCIE), {what}", found[device], found[CPU], device
    )


def _beside_cpu(what: str, seconds: float, on_cpu: float, device: torch.device) -> Line:
    if device.type == "cpu":
        return Line(what, f"{seconds:.2f} s")
    return Line(what, f"{seconds:.3f} s", f"CPU {on_cpu:.2f} s", on_cpu / seconds)


def _sampled(
    count: int, dim: int, num_clusters: int, iterations: int, device: torch.device, turns: int
) -> float:
    kmeans = KMeans(num_clusters, iterations=iterations, restarts=1)
    points = torch.from_numpy(unit_points(count, dim)).to(device)
    return _median(lambda: kmeans.fit(points, seed=0), turns if device.type == "cuda" else 1, device)


def _minibatch(
    count: int, dim: int, num_clusters: int, iterations: int, first: int, updates: int, device: torch.device
) -> float:
    """Seconds of a whole clustering, from a first batch and one update; on a CPU from a part of them."""
    share = BATCH_SHARE[device.type]
    kmeans = KMeans(num_clusters, iterations=iterations, restarts=1, spherical=False)
    running = MiniBatchKMeans(kmeans, init_batches=1, num_batches=2, seeds=[0])
    points = torch.from_numpy(unit_points(count // share, dim)).to(device)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        running.add(points)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return share * (first * times[0] + updates * times[1])


def crf(device: torch.device, turns: int, *, compiled: bool = False) -> Iterator[Line]:
    """Images per second, of a picture like a photograph: exact on a GPU, of the lattice on one CPU core."""
    params = read_preset(PAPER)
    side, num_clusters = params.size_px, params.pixel_k
    image = clouds(side)
    rng = np.random.default_rng(0)
    unary = rng.dirichlet(np.ones(num_clusters), (side, side)).transpose(2, 0, 1).astype(np.float32)
    lattice = 1 / _median(lambda: mean_field(image, unary, params.refine), 1, CPU)
    what = f"CRF, {side} px, {num_clusters} clusters, {params.refine.iterations} iterations"
    if device.type == "cpu":
        yield Line(f"{what}: pydensecrf on one core", f"{lattice:.2f} images/s")
        return
    tensors = [torch.from_numpy(one).to(device) for one in (image, unary)]
    for name, backend in (("exact on the GPU", "cuda"), ("the same, fused", "fused")):
        settings = params.refine.model_copy(update={"backend": backend})
        exact = 1 / _median(lambda one=settings: exact_mean_field(*tensors, one), turns, device)
        yield Line(
            f"{what}: {name}",
            f"{exact:.2f} images/s",
            f"pydensecrf on one core {lattice:.2f} images/s",
            exact / lattice,
        )


def clouds(side: int) -> UInt8[np.ndarray, "S S 3"]:
    """A picture that costs a CRF what photographs cost: smooth, with grain, and few hues.

    At 320 px and a color bandwidth of 3, 15 % of its pairs of pixel blocks are near each other (`fused_crf`);
    of twelve photographs these were 11 to 26 %, of squares in random colors 0.1 %.
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, 3, side, side)
    for cells in (2**level for level in range(1, side.bit_length())):
        gray, own = (torch.randn(1, count, cells, cells, generator=generator) for count in (1, 3))
        noise = GRAY_SHARE * gray + (1 - GRAY_SHARE**2) ** 0.5 * own
        total += cells**-FALL * functional.interpolate(noise, size=(side, side), mode="bicubic")
    colours = 128 + CONTRAST * total[0] / total.std()
    return colours.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def _median(work: Callable[[], object], turns: int, device: torch.device) -> float:
    times = []
    warm_up = 1 if device.type == "cuda" else 0  # a CPU takes seconds, a first call little more
    for _ in range(warm_up + turns):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[warm_up:]))
