"""Cropping, resizing and blurring as matrices, against direct sums and against torch's own filter."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.imaging.resample import (
    Boxes,
    enlarge,
    gaussian_matrix,
    interpolation_matrix,
    resample,
    shrink,
    whole,
)
from tests.bench.operators import Operators


def _image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _boxes(*rows: tuple[float, float, float, float, float]) -> Boxes:
    return Boxes(*torch.tensor(rows, dtype=torch.float32).unbind(1))


def _plain_weights(start: float, length: float, source: int, target: int) -> np.ndarray:
    """A triangle about each cell's centre, widened where it shrinks; the nearest cell at the border."""
    weights = np.zeros((target, source))
    step = length * source / target
    for cell in range(target):
        centre = start * source + (cell + 0.5) * step - 0.5
        centre = min(max(centre, 0.0), source - 1.0)
        for position in range(source):
            weights[cell, position] = max(0.0, 1 - abs(position - centre) / max(step, 1.0))
        weights[cell] /= weights[cell].sum()
    return weights


CASES = [(0.0, 1.0, 8, 8), (0.0, 1.0, 8, 16), (0.0, 1.0, 16, 5), (0.25, 0.5, 16, 4), (0.1, 0.77, 9, 13)]


@pytest.mark.parametrize(("start", "length", "source", "target"), CASES)
def test_interpolation_matrix(
    start: float, length: float, source: int, target: int, device: torch.device
) -> None:
    found = interpolation_matrix(
        torch.tensor([start], device=device), torch.tensor([length], device=device), source, target
    ).cpu()
    assert found.shape == (1, target, source)
    np.testing.assert_allclose(found[0], _plain_weights(start, length, source, target), atol=2e-5)
    np.testing.assert_allclose(found.sum(2), 1, atol=1e-6)
    assert (found >= 0).all()


def test_the_whole_box_at_the_same_size_is_the_identity(device: torch.device) -> None:
    image = _image(2, 3, 7, 9).to(device)
    assert torch.equal(resample(image, whole(2).to(device), (7, 9)), image)


def test_flips_mirror_left_and_right(device: torch.device) -> None:
    image = _image(2, 3, 6, 8).to(device)
    mirrored = resample(image, _boxes((0, 0, 1, 1, 1), (0, 0, 1, 1, 0)).to(device), (6, 8))
    assert torch.equal(mirrored[0], image[0].flip(2))
    assert torch.equal(mirrored[1], image[1])


def test_a_flipped_box_is_the_box_and_then_the_flip() -> None:
    image = _image(1, 3, 11, 13)
    plain = resample(image, _boxes((0.1, 0.2, 0.6, 0.5, 0)), (5, 7))
    flipped = resample(image, _boxes((0.1, 0.2, 0.6, 0.5, 1)), (5, 7))
    torch.testing.assert_close(flipped, plain.flip(3), rtol=0, atol=1e-6)
    # and the mirrored place of the mirrored image, which is what makes a cut feature map comparable
    mirrored = resample(image.flip(3), _boxes((0.1, 0.3, 0.6, 0.5, 0)), (5, 7))
    torch.testing.assert_close(mirrored, flipped, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (24, 31), (8, 8), (5, 11), (3, 40)])
def test_whole_images_agree_with_torchs_anti_aliased_filter(
    size: tuple[int, int], device: torch.device
) -> None:
    image = _image(2, 3, 16, 16).to(device)
    expected = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(resample(image, whole(2).to(device), size), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("target", "side"), [(8, 16), (16, 16), (24, 8), (4, 16)])
def test_boxes_agree_with_cropping_then_resizing_away_from_the_crops_border(target: int, side: int) -> None:
    image = _image(1, 3, 32, 32)
    top, left = 8, 4
    found = resample(image, _boxes((top / 32, left / 32, side / 32, side / 32, 0)), (target, target))
    crop = image[:, :, top : top + side, left : left + side]
    expected = F.interpolate(crop, (target, target), mode="bilinear", align_corners=False, antialias=True)
    # Beyond its border the crop knows nothing, and the box sees its surroundings: as far as a kernel reaches.
    step = side / target
    margin = math.ceil(max(step, 1.0) / step)
    inner = slice(margin, target - margin)
    assert target - 2 * margin > 0
    torch.testing.assert_close(found[:, :, inner, inner], expected[:, :, inner, inner], rtol=0, atol=1e-5)


def test_each_image_has_a_box_of_its_own() -> None:
    image = _image(3, 2, 12, 12)
    boxes = _boxes((0, 0, 1, 1, 0), (0.25, 0.5, 0.5, 0.25, 1), (0.1, 0.3, 0.33, 0.6, 0))
    sigma = torch.tensor([0.0, 0.7, 1.5])
    together = resample(image, boxes, (6, 5), sigma)
    for index in range(3):
        row = torch.tensor([index])
        alone = resample(image[row], boxes.select(row), (6, 5), sigma[row])
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-6)


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_resample_is_the_double_sum_of_both_sides_weights(
    layout: torch.memory_format, channels: int, device: torch.device
) -> None:
    image = _image(2, channels, 6, 7).to(device, memory_format=layout)
    boxes = _boxes((0.2, 0.1, 0.7, 0.8, 0), (0, 0.3, 0.9, 0.5, 0)).to(device)
    found = resample(image, boxes, (4, 5)).cpu()
    assert found.shape == (2, channels, 4, 5)
    for n, (top, left, height, width) in enumerate([(0.2, 0.1, 0.7, 0.8), (0, 0.3, 0.9, 0.5)]):
        rows, columns = _plain_weights(top, height, 6, 4), _plain_weights(left, width, 7, 5)
        for channel, pixels in enumerate(image[n].double().cpu().numpy()):
            for r, c in np.ndindex(4, 5):
                expected = sum(rows[r, y] * columns[c, x] * pixels[y, x] for y in range(6) for x in range(7))
                assert float(found[n, channel, r, c]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.8])
def test_gaussian_matrix_is_a_convolution_away_from_the_border(sigma: float, device: torch.device) -> None:
    size, reach = 48, 16
    found = gaussian_matrix(torch.tensor([sigma], device=device), size).cpu()[0]
    signal = _image(size).double().numpy()
    kernel = np.array([math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-reach, reach + 1)])
    kernel /= kernel.sum()
    for place in range(reach, size - reach):
        direct = sum(kernel[offset + reach] * signal[place + offset] for offset in range(-reach, reach + 1))
        assert float(found[place].double() @ torch.from_numpy(signal)) == pytest.approx(direct, abs=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_no_blur_is_the_identity() -> None:
    assert torch.equal(gaussian_matrix(torch.zeros(1), 9)[0], torch.eye(9))
    image = _image(2, 3, 8, 8)
    blurred = resample(image, whole(2), (8, 8), torch.tensor([0.0, 1.0]))
    assert torch.equal(blurred[0], image[0])
    assert (blurred[1] - image[1]).abs().max() > 0.05


def test_blur_keeps_a_plain_image_as_it_is() -> None:
    plain = torch.full((1, 3, 9, 9), 0.3)
    torch.testing.assert_close(resample(plain, whole(1), (9, 9), torch.tensor([2.0])), plain)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_flow_back_to_the_image(layout: torch.memory_format) -> None:
    image = _image(1, 16, 3, 3).double().to(memory_format=layout).requires_grad_()
    boxes = Boxes(*(part.double() for part in _boxes((0.2, 0.1, 0.7, 0.8, 1))))
    assert torch.autograd.gradcheck(
        lambda image: resample(image, boxes, (2, 3), torch.tensor([0.8], dtype=torch.float64)), (image,)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("source", "target"), [((3, 4), (6, 8)), ((3, 5), (7, 9)), ((1, 2), (4, 2))])
def test_enlarging_is_the_same_plain_compiled_and_on_each_device(
    source: tuple[int, int], target: tuple[int, int], layout: torch.memory_format, device: torch.device
) -> None:
    start = _image(2, 16, *source)
    weight = _image(2, 16, *target, seed=1)  # of each result in a sum, so that gradients differ
    rows, columns = (
        torch.from_numpy(_plain_weights(0, 1, *sides)).float() for sides in zip(source, target, strict=True)
    )
    expected = torch.einsum("ih,nchw,jw->ncij", rows, start, columns)
    gradient = torch.einsum("ih,ncij,jw->nchw", rows, weight, columns)
    for way in (enlarge, torch.compile(enlarge, backend="eager")):
        feature = start.clone(memory_format=layout).to(device).requires_grad_()
        result = way(feature, target)
        (result * weight.to(device)).sum().backward()
        torch.testing.assert_close(result.cpu(), expected)
        torch.testing.assert_close(feature.grad.cpu(), gradient)


@pytest.mark.parametrize("way", ["compiled", "on a GPU"])
def test_the_gradient_of_enlarging_scatters_nothing(way: str) -> None:
    feature = _image(2, 16, 4, 4).to("cpu" if way == "compiled" else "meta").requires_grad_()
    result = (torch.compile(enlarge, backend="eager") if way == "compiled" else enlarge)(feature, (8, 8))
    with Operators() as counted:
        result.sum().backward()
    assert counted.calls["bmm"] == 2
    assert not [name for name in counted.calls if "upsample" in name or "index" in name]


def test_enlarging_is_one_call_on_a_gpu() -> None:
    """Interpolation of torch would be many in deterministic mode."""
    feature = torch.empty(2, 16, 4, 4, device="meta")
    with Operators() as counted:
        enlarge(feature, (8, 8))
    assert counted.calls == {"upsample_bilinear2d": 1}


@pytest.mark.parametrize("size", [(4, 6), (8, 12), (3, 5)])
def test_shrinking_takes_the_mean_of_each_cell(device: torch.device, size: tuple[int, int]) -> None:
    feature = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    found = shrink(feature.to(device), size).cpu()
    for row in range(size[0]):
        top, bottom = row * 8 // size[0], -(-(row + 1) * 8 // size[0])
        for column in range(size[1]):
            left, right = column * 12 // size[1], -(-(column + 1) * 12 // size[1])
            expected = feature[:, :, top:bottom, left:right].double().mean((2, 3))
            torch.testing.assert_close(found[:, :, row, column].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 16])
def test_no_images_give_no_views(channels: int, layout: torch.memory_format) -> None:
    """A process may have no guided image in its share of a batch."""
    none = torch.zeros(0, channels, 6, 6).to(memory_format=layout)
    assert resample(none, whole(0), (4, 4), torch.zeros(0)).shape == (0, channels, 4, 4)


@pytest.mark.parametrize(("source", "target"), [((6, 6), (4, 4)), ((6, 7), (4, 5))])
def test_several_views_of_each_image_are_those_that_are_cut_alone(
    source: tuple[int, int], target: tuple[int, int], device: torch.device
) -> None:
    image = _image(2, 3, *source).to(device)
    boxes = _boxes((0, 0, 1, 1, 0), (0.2, 0.1, 0.7, 0.8, 1), (0.1, 0, 0.5, 0.4, 1), (0, 0.3, 0.9, 0.5, 0)).to(
        device
    )
    sigma = torch.tensor([0.0, 0.7, 1.5, 0.3], device=device)
    together = resample(image, boxes, target, sigma)
    for view in range(2):
        rows = torch.arange(2 * view, 2 * view + 2, device=device)
        alone = resample(image, boxes.select(rows), target, sigma[rows])
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-6)
