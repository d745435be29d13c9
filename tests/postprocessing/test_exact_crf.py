"""The exact mean field against loops in float64, and against the lattice of pydensecrf."""

import numpy as np
import pytest
import torch

from stages.postprocessing import exact_crf
from stages.postprocessing.dense_crf import mean_field
from stages.postprocessing.exact_crf import AppearanceKernel, exact_mean_field
from tests.postprocessing.test_dense_crf import SETTINGS, _case, _exact, crf_settings


def _found(image: np.ndarray, unary: np.ndarray, device: torch.device, **settings: float) -> np.ndarray:
    tensors = (torch.from_numpy(one).to(device) for one in (image, unary))
    return exact_mean_field(*tensors, crf_settings(**settings)).cpu().numpy()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("iterations", [1, 5])
def test_it_is_the_mean_field(
    device: torch.device, seed: int, settings: dict[str, float], iterations: int
) -> None:
    image, unary = _case(seed)
    found = _found(image, unary, device, iterations=iterations, appearance_color=20.0, **settings)
    exact = _exact(image, unary, iterations=iterations, colour=20.0, **settings)
    np.testing.assert_allclose(found, exact, atol=1e-5 if device.type == "cpu" else 2e-3)


def _picture(side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Three regions with soft borders and noise; scores that see their borders in the wrong places."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    truth = np.where(y + 0.15 * np.sin(9 * x) < 0.45, 0, np.where(x < 0.5, 1, 2))
    colors = np.array([[110, 160, 220], [90, 140, 60], [150, 110, 70]])
    image = np.clip(colors[truth] + rng.normal(0, 6, (side, side, 3)), 0, 255).astype(np.uint8)
    seen = np.roll(truth, 3, axis=(0, 1))
    unary = np.full((3, side, side), 0.2, np.float32)
    np.put_along_axis(unary, seen[None], 0.6, 0)
    return image, unary


def test_the_lattice_comes_near_it(device: torch.device) -> None:
    image, unary = _picture()
    settings = {"iterations": 10, "smoothness_weight": 3.0, "smoothness_px": 1.0}
    settings |= {"appearance_weight": 4.0, "appearance_px": 14.0, "appearance_color": 10.0}
    found = _found(image, unary, device, **settings)
    lattice = mean_field(image, unary, crf_settings(**settings))
    assert (found.argmax(0) == lattice.argmax(0)).mean() > 0.99
    assert (unary.argmax(0) != lattice.argmax(0)).mean() > 0.03, "there was something to correct"


def test_blocks_give_what_the_whole_matrix_gives(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.from_numpy(_picture(20)[0]).to(device)
    settings = {"appearance_px": 5.0, "appearance_color": 10.0}
    values = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)).to(device)
    whole = AppearanceKernel(image, **settings, is_stored=True).message(values)
    monkeypatch.setattr(exact_crf, "BLOCK_BYTES", 4 * 400 * 64)  # blocks of 64 rows, the last one smaller
    tolerance = 1e-5 if device.type == "cuda" else 1e-6  # a GPU adds in another order in blocks
    for is_stored in (True, False):
        found = AppearanceKernel(image, **settings, is_stored=is_stored).message(values)
        torch.testing.assert_close(found, whole, rtol=tolerance, atol=tolerance)


class FirstRows(AppearanceKernel):
    """The kernel of the first pixels with all: of a large image, all with all would take a minute."""

    def _blocks(self) -> list[slice]:
        return super()._blocks()[:1]


def test_a_sum_of_weights_may_exceed_what_float16_holds(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an image of one color it is up to the number of pixels, here 90,000; float16 ends at 65,504."""
    side, px, rows = 300, 1000.0, 8
    monkeypatch.setattr(exact_crf, "BLOCK_BYTES", 4 * side**2 * rows)
    image = torch.full((side, side, 3), 90, dtype=torch.uint8, device=device)
    kernel = FirstRows(image, appearance_px=px, appearance_color=10.0, is_stored=False, dtype=torch.float16)
    places = np.arange(side)
    along = np.exp(-(((places[:, None] - places) / px) ** 2) / 2).sum(1)
    sums = (along[:, None] * along).ravel()[:rows]
    assert sums.min() > 65_504
    np.testing.assert_allclose(kernel.inverse_root[:, 0].cpu(), sums**-0.5, rtol=1e-3)


def test_the_kernel_is_symmetric_and_a_pixel_is_nearest_to_itself() -> None:
    image = torch.from_numpy(_picture(12)[0])
    kernel = AppearanceKernel(image, appearance_px=3.0, appearance_color=10.0).product(torch.eye(144))
    torch.testing.assert_close(kernel, kernel.T)
    torch.testing.assert_close(kernel.diagonal(), torch.ones(144), rtol=0, atol=1e-4)
    assert ((kernel >= 0) & (kernel <= 1 + 1e-4)).all()
