"""The fused kernel: which blocks it multiplies, and, in Triton's interpreter or on a GPU, what it computes.

Triton decides when it is imported if it interprets, so without a GPU a process of its own runs the kernel.
"""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from stages.postprocessing.exact_crf import AppearanceKernel, exact_mean_field
from stages.postprocessing.pixel_blocks import BlockPairs, appearance_features, pair_blocks
from tests.postprocessing.test_dense_crf import SETTINGS, _case, _exact, crf_settings
from tests.postprocessing.test_exact_crf import _picture

Run = Callable[..., Any]
PX, COLOR = 8.0, 5.0


@pytest.fixture(scope="module")
def run(device: torch.device) -> Iterator[Run]:
    """Calls a function of this module where the kernel can run."""
    if device.type == "cuda":
        yield lambda function, *args: function(*args)
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()  # starts the process, which keeps the variable
        yield lambda function, *args: pool.submit(function, *args).result()


def _product(
    image: np.ndarray, values: np.ndarray, device: str, dtype: torch.dtype = torch.float16
) -> np.ndarray:
    """K @ values by the fused kernel."""
    from stages.postprocessing.fused_crf import FusedKernel

    features = appearance_features(torch.from_numpy(image).to(device), PX, COLOR)
    return FusedKernel(features, dtype=dtype).product(torch.from_numpy(values).to(device)).cpu().numpy()


def _marginals(image: np.ndarray, unary: np.ndarray, settings: dict[str, Any], device: str) -> np.ndarray:
    tensors = (torch.from_numpy(one).to(device) for one in (image, unary))
    return exact_mean_field(*tensors, crf_settings(**settings)).cpu().numpy()


def _weights(image: np.ndarray) -> np.ndarray:
    """The appearance kernel in float64, from the definition."""
    places = np.stack(np.indices(image.shape[:2]), axis=-1).reshape(-1, 2) / PX
    points = np.concatenate([places, image.reshape(-1, 3) / COLOR], axis=1)
    return np.exp(-cdist(points, points, "sqeuclidean") / 2)


def _values(pixels: int, clusters: int) -> np.ndarray:
    return np.random.default_rng(1).random((pixels, clusters), dtype=np.float32)


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)


IMAGES = {
    "regions": _picture(24)[0],
    "no multiple of a block": _picture(40)[0][:23, :31],
    "less than a block": _noise(3, 5),
    "one pixel": _noise(1, 1),
    "one color": np.full((20, 20, 3), 77, np.uint8),
    "noise": _noise(24, 20),
}


# Blocks


def _pairs(pairs: BlockPairs) -> set[tuple[int, int]]:
    offsets = pairs.offsets.tolist()
    return {
        (block, partner)
        for block in range(len(offsets) - 1)
        for partner in pairs.partners[offsets[block] : offsets[block + 1]].tolist()
    }


def _needed(image: np.ndarray, block: int, smallest: float, order: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of blocks that hold a pair of pixels with a weight that matters, by looking at every one."""
    block_of = np.argsort(order)[: image[..., 0].size] // block
    return set(map(tuple, np.unique(block_of[np.argwhere(_weights(image) > smallest)], axis=0).tolist()))


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("smallest", [1e-6, 1e-2])
@pytest.mark.parametrize("block", [8, 64])
def test_no_weight_that_matters_is_left_out(
    device: torch.device, image: np.ndarray, smallest: float, block: int
) -> None:
    features = appearance_features(torch.from_numpy(image).to(device), PX, COLOR)
    pairs = BlockPairs(*(part.cpu() for part in pair_blocks(features, block, smallest)))
    count = -(-len(features) // block)
    assert sorted(pairs.order.tolist()) == list(range(count * block))
    assert sorted(pairs.schedule.tolist()) == list(range(count))
    lengths = pairs.offsets.diff()
    assert (lengths[pairs.schedule.long()].diff() <= 0).all()
    assert (pairs.offsets[0], pairs.offsets[-1]) == (0, len(pairs.partners))
    kept = _pairs(pairs)
    assert len(kept) == len(pairs.partners)
    assert _needed(image, block, smallest, pairs.order.numpy()) <= kept


def test_few_pairs_stay_that_are_not_needed_so_that_a_lost_one_is_noticed() -> None:
    image = IMAGES["regions"]
    features = appearance_features(torch.from_numpy(image), PX, COLOR)
    pairs = pair_blocks(features, 8, 1e-6)
    kept, needed = _pairs(pairs), _needed(image, 8, 1e-6, pairs.order.numpy())
    assert len(kept) < (image[..., 0].size // 8) ** 2, "some pairs are left out"
    assert len(needed) > 0.5 * len(kept)
    assert needed - _pairs(pair_blocks(features, 8, 1e-3)), "a rule that leaves out more is found"


def test_all_pairs_of_one_color_stay_and_those_of_two_colors_do_not_mix() -> None:
    near = pair_blocks(appearance_features(torch.zeros(16, 16, 3, dtype=torch.uint8), PX, COLOR), 64, 1e-6)
    assert near.partners.tolist() == 4 * [0, 1, 2, 3]
    image = torch.zeros(16, 16, 3, dtype=torch.uint8)
    image[:, 8:] = 200
    two = pair_blocks(appearance_features(image, PX, COLOR), 64, 1e-6)
    assert two.partners.tolist() == 2 * [0, 1] + 2 * [2, 3]


def test_blocks_are_compact() -> None:
    """Of a plain image those of a k-d tree are squares."""
    features = appearance_features(torch.zeros(64, 64, 3, dtype=torch.uint8), 1.0, 1.0)
    blocks = pair_blocks(features, 64, 1e-6).features.view(64, 64, 5)
    assert ((blocks.amax(1) - blocks.amin(1))[:, :2] == 7).all()


# Products


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("clusters", [1, 3])
def test_products_are_those_of_the_whole_matrix(
    run: Run, device: torch.device, image: np.ndarray, clusters: int
) -> None:
    values = _values(image[..., 0].size, clusters)
    expected = _weights(image) @ values.astype(np.float64)
    missing = 1e-6 * values.sum(0)  # what blocks that are left out may have contributed
    found = run(_product, image, values, device.type, torch.float32)
    assert (np.abs(found - expected) <= missing + 3e-4 * expected).all()
    found = run(_product, image, values, device.type)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_many_clusters_are_multiplied_in_turns(run: Run, device: torch.device) -> None:
    image = IMAGES["regions"]
    values = _values(image[..., 0].size, 130)  # the kernel takes 64 at a time, and powers of two below
    whole = run(_product, image, values, device.type)
    np.testing.assert_allclose(whole, _weights(image) @ values, rtol=2e-3)
    for clusters in (20, 65):
        found = run(_product, image, values[:, :clusters], device.type)
        np.testing.assert_allclose(found, whole[:, :clusters], rtol=1e-5)


def test_products_repeat_their_bytes_and_are_those_of_the_stored_kernel(
    run: Run, device: torch.device
) -> None:
    image = IMAGES["no multiple of a block"]
    values = _values(image[..., 0].size, 5)
    first, second = (run(_product, image, values, device.type) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    kernel = AppearanceKernel(torch.from_numpy(image).to(device), appearance_px=PX, appearance_color=COLOR)
    stored = kernel.product(torch.from_numpy(values).to(device)).cpu().numpy()
    np.testing.assert_allclose(first, stored, rtol=5e-3)


def test_what_is_left_out_stays_below_the_stated_share_of_the_values(run: Run, device: torch.device) -> None:
    """Values far away are a million times larger than those that are near."""
    image = np.full((16, 16, 3), 50, np.uint8)
    image[:, 8:] = 50 + math.ceil(
        COLOR * math.sqrt(-2 * math.log(1e-6) / 3)
    )  # just too far: weights below 1e-6
    values = np.ones((256, 1), np.float32)
    values.reshape(16, 16)[:, 8:] = 1e6
    found = run(_product, image, values, device.type, torch.float32)
    expected = _weights(image) @ values.astype(np.float64)
    lacking = expected - found
    assert (lacking <= 1e-6 * values.sum() + 1e-4 * expected).all()
    assert lacking.max() > 1, "something was left out"


# Mean field


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_is_the_mean_field(run: Run, device: torch.device, settings: dict[str, float]) -> None:
    image, unary = _case(0)
    given = {**settings, "iterations": 5, "appearance_color": 20.0, "backend": "fused"}
    found = run(_marginals, image, unary, given, device.type)
    exact = _exact(image, unary, iterations=5, colour=20.0, **settings)
    np.testing.assert_allclose(found, exact, atol=2e-3)


def test_labels_are_those_of_the_stored_kernel(run: Run, device: torch.device) -> None:
    side = 160 if device.type == "cuda" else 24
    image, unary = _picture(side)
    settings = {"iterations": 5, "smoothness_weight": 3.0, "smoothness_px": 1.0}
    settings |= {"appearance_weight": 4.0, "appearance_px": 67 * side / 320, "appearance_color": 10.0}
    fused = run(_marginals, image, unary, {**settings, "backend": "fused"}, device.type).argmax(0)
    stored = _marginals(image, unary, {**settings, "backend": "cuda"}, device.type).argmax(0)
    assert (fused == stored).mean() > 0.999
    assert (unary.argmax(0) != stored).mean() > 0.03, "there was something to correct"


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("clusters", [16, 64])
def test_the_kernel_compiles_without_a_gpu(architecture: int, clusters: int) -> None:
    """To the instructions of an A100 and of an H100, with tensor cores and without a float64 operation."""
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from stages.postprocessing.fused_crf import BLOCK, multiply_blocks

    types = ["*fp32", "*fp16", "*fp32", "*i32", "*i32", "*i32", "i32", "i32", "constexpr", "constexpr"]
    signature = dict(zip(multiply_blocks.arg_names, types, strict=True))
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(8)}  # as a launch finds
    source = ASTSource(multiply_blocks, signature, {(8,): BLOCK, (9,): clusters}, aligned)
    text = triton_compile(source, target=GPUTarget("cuda", architecture, 32)).asm["ptx"]
    assert "mma" in text
    assert "ex2.approx" in text
    assert "fma.rn.f32" in text
    assert ".f64" not in text
    assert "atom" not in text, "a sum without a fixed order"
