"""k-means and the dense CRF at the paper's sizes, beside what a CPU does."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from stages.clustering.kmeans import KMeans
from stages.postprocessing.dense_crf import mean_field
from stages.postprocessing.exact_crf import exact_mean_field

# Points, features and clusters of one view; side and clusters of an image; for each kind of device.
POINTS = {"cpu": (20_000, 128, 27), "cuda": (300_000, 256, 27)}
IMAGES = {"cpu": (64, 27), "cuda": (320, 27)}
CRF = {"iterations": 10, "smoothness_weight": 3.0, "smoothness_px": 1.0, "appearance_weight": 4.0}
COLOR = 5.0


def clustering(device: torch.device, turns: int, *, compiled: bool = False) -> Iterator[str]:
    """Seconds of one k-means of 20 iterations, on the device and on the CPU."""
    count, dim, num_clusters = POINTS[device.type]
    points = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    seconds = {}
    for name in dict.fromkeys((device, torch.device("cpu"))):
        kmeans = KMeans(num_clusters, iterations=20, restarts=1)
        given = torch.from_numpy(points).to(name)
        seconds[name.type] = _median(lambda k=kmeans, p=given: k.fit(p, seed=0), turns, name)
    shown = ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())
    yield f"k-means of {count:,} points, {dim} features, {num_clusters} clusters, 20 iterations: {shown}"


def crf(device: torch.device, turns: int, *, compiled: bool = False) -> Iterator[str]:
    """Images per second of the exact CRF on the device, beside the lattice on one CPU core."""
    side, num_clusters = IMAGES[device.type]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    unary = rng.dirichlet(np.ones(num_clusters), (side, side)).transpose(2, 0, 1).astype(np.float32)
    settings = {**CRF, "appearance_px": 67 * side / 320, "appearance_color": COLOR}
    tensors = [torch.from_numpy(one).to(device) for one in (image, unary)]
    exact = _median(lambda: exact_mean_field(*tensors, **settings), turns, device)
    lattice = _median(lambda: mean_field(image, unary, **settings), 1, torch.device("cpu"))
    yield (
        f"CRF at {side} px, {num_clusters} clusters, 10 iterations: exact on {device.type} {1 / exact:.2f} "
        f"images/s, lattice on one core {1 / lattice:.2f}: {lattice / exact:.1f} times"
    )


def _median(work: Callable[[], object], turns: int, device: torch.device) -> float:
    times = []
    for _ in range(turns + 1):  # the first warms up
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
