"""Photometric and geometric changes of images: what holds for every parameter."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.imaging.photometric import Jitter, apply_colour, draw_jitter
from stages.imaging.resample import Boxes, interpolation_matrix, resample, whole
from stages.pretraining.views import random_resized_boxes
from stages.segmenter.context import to_lab
from stages.training.guidance import draw_guides
from stages.training.siamese import View, ViewMaker, cut_features, square_boxes

LUMA = (0.299, 0.587, 0.114)
factors = st.floats(0, 2, allow_subnormal=False)
turns = st.floats(-0.5, 0.5, allow_subnormal=False)
seeds = st.integers(0, 2**31)


def _strengths(**changes: object) -> SimpleNamespace:
    strengths = {
        "jitter_probability": 0.8,
        "jitter_together": True,
        "brightness": 0.4,
        "contrast": 0.3,
        "saturation": 0.2,
        "hue": 0.1,
        "gray_probability": 0.2,
        "blur_probability": 0.5,
        "blur_sigma_px": [0.1, 2.0],
        "blur_reference_px": 320,
    }
    return SimpleNamespace(**{**strengths, **changes})


def _jitter(brightness: float = 1, contrast: float = 1, saturation: float = 1, hue: float = 0) -> Jitter:
    return Jitter(*(torch.tensor([float(value)]) for value in (brightness, contrast, saturation, hue, 0)))


def _image(seed: int = 0, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 3, 4, generator=torch.Generator().manual_seed(seed))


def _gray(pixel: list[float]) -> float:
    return sum(weight * value for weight, value in zip(LUMA, pixel, strict=True))


def _turned(pixel: list[float], turn: float) -> list[float]:
    """Rotation about (1, 1, 1): p cos + (k x p) sin + k (k . p) (1 - cos), Rodrigues."""
    angle, k = 2 * math.pi * turn, 1 / math.sqrt(3)
    r, g, b = pixel
    cross = (k * b - k * g, k * r - k * b, k * g - k * r)
    along = k * k * (r + g + b) * (1 - math.cos(angle))
    return [
        value * math.cos(angle) + side * math.sin(angle) + along
        for value, side in zip(pixel, cross, strict=True)
    ]


def _plain(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """Contrast about the mean grey, saturation, hue, brightness, pixel by pixel; clipped once, at the end."""
    result = np.zeros_like(image)
    _, height, width = image.shape
    pixels = [(row, column) for row in range(height) for column in range(width)]
    mean = sum(_gray(image[:, row, column].tolist()) for row, column in pixels) / len(pixels)
    for row, column in pixels:
        pixel = [contrast * value + (1 - contrast) * mean for value in image[:, row, column]]
        gray = _gray(pixel)
        pixel = [saturation * value + (1 - saturation) * gray for value in pixel]
        pixel = _turned(pixel, hue)
        result[:, row, column] = [min(max(brightness * value, 0.0), 1.0) for value in pixel]
    return result


@given(brightness=factors, contrast=factors, saturation=factors, hue=turns, seed=st.integers(0, 50))
def test_colour_is_what_happens_to_each_pixel(
    brightness: float, contrast: float, saturation: float, hue: float, seed: int
) -> None:
    image = _image(seed)
    found = apply_colour(image, _jitter(brightness, contrast, saturation, hue))
    expected = _plain(image[0].double().numpy(), brightness, contrast, saturation, hue)
    np.testing.assert_allclose(found[0], expected, atol=5e-6)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_change_alone(name: str) -> None:
    image = _image()
    value = 0.2 if name == "hue" else 0.6
    plain = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, name: value}
    found = apply_colour(image, _jitter(**{name: value}))
    np.testing.assert_allclose(found[0], _plain(image[0].double().numpy(), **plain), atol=2e-6)
    assert (found - image).abs().max() > 0.05


def test_factors_of_one_and_no_turn_change_nothing() -> None:
    image = _image(count=2)
    jitter = Jitter(*(torch.cat([part, part]) for part in _jitter()))
    torch.testing.assert_close(apply_colour(image, jitter), image, rtol=0, atol=1e-6)


@given(saturation=factors, hue=turns, level=st.floats(0, 1))
def test_gray_stays_gray(saturation: float, hue: float, level: float) -> None:
    gray = torch.full((1, 3, 2, 2), level)
    torch.testing.assert_close(apply_colour(gray, _jitter(saturation=saturation, hue=hue)), gray)


def test_no_saturation_is_gray_whatever_the_turn() -> None:
    found = apply_colour(_image(), _jitter(saturation=0, hue=0.3))
    expected = sum(weight * _image()[:, channel] for channel, weight in enumerate(LUMA))
    torch.testing.assert_close(found, expected[:, None].expand_as(found), rtol=0, atol=1e-6)


def test_a_third_of_a_turn_exchanges_the_channels() -> None:
    image = _image()
    torch.testing.assert_close(
        apply_colour(image, _jitter(hue=1 / 3)), image[:, [2, 0, 1]], rtol=0, atol=1e-6
    )


def test_results_stay_within_the_range_of_colours() -> None:
    found = apply_colour(_image(), _jitter(2, 2, 2, 0.1))
    assert found.min() == 0
    assert found.max() == 1


@given(seed=seeds, image_px=st.sampled_from([64, 320]))
def test_drawn_parameters_lie_within_their_ranges(seed: int, image_px: int) -> None:
    strengths = _strengths()
    jitter = draw_jitter(50, strengths, image_px, torch.Generator().manual_seed(seed))
    for name in ("brightness", "contrast"):
        factor, strength = getattr(jitter, name), getattr(strengths, name)
        assert (factor >= 1 - strength - 1e-6).all(), name
        assert (factor <= 1 + strength + 1e-6).all(), name
    coloured = jitter.saturation[jitter.saturation > 0]
    assert (coloured >= 0.8 - 1e-6).all()
    assert (coloured <= 1.2 + 1e-6).all()
    assert (jitter.hue_turns.abs() <= 0.1 + 1e-6).all()
    blurred = jitter.blur_sigma_px[jitter.blur_sigma_px > 0] * 320 / image_px
    assert (blurred >= 0.1 - 1e-6).all()
    assert (blurred <= 2.0 + 1e-5).all()
    again = draw_jitter(50, strengths, image_px, torch.Generator().manual_seed(seed))
    assert all(torch.equal(first, second) for first, second in zip(jitter, again, strict=True))


def test_probabilities_are_those_that_are_asked_for() -> None:
    jitter = draw_jitter(4000, _strengths(), 320, torch.Generator().manual_seed(0))
    assert float((jitter.brightness != 1).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((jitter.saturation == 0).float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float((jitter.blur_sigma_px > 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    # Jitter is all or nothing for an image.
    assert torch.equal(jitter.brightness != 1, jitter.contrast != 1)


@given(seed=seeds)
def test_jitter_of_no_strength_changes_nothing(seed: int) -> None:
    nothing = _strengths(
        brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, gray_probability=0.0, blur_probability=0.0
    )
    jitter = draw_jitter(3, nothing, 64, torch.Generator().manual_seed(seed))
    image = _image(seed % 100, 3)
    torch.testing.assert_close(apply_colour(image, jitter), image, rtol=0, atol=1e-6)
    assert (jitter.blur_sigma_px == 0).all()


def test_a_strength_above_one_never_asks_for_less_than_black() -> None:
    jitter = draw_jitter(200, _strengths(brightness=3.0), 64, torch.Generator().manual_seed(0))
    assert (jitter.brightness >= 0).all()
    assert jitter.brightness.max() > 2


@given(
    start=st.floats(0, 0.9), share=st.floats(0.05, 1), source=st.integers(1, 20), target=st.integers(1, 20)
)
def test_interpolation_rows_sum_to_one(start: float, share: float, source: int, target: int) -> None:
    matrix = interpolation_matrix(torch.tensor([start]), torch.tensor([share * (1 - start)]), source, target)
    torch.testing.assert_close(matrix.sum(2), torch.ones(1, target))
    assert (matrix >= 0).all()


@given(seed=seeds, side=st.sampled_from([(0.5, 1.0), (0.3, 0.3), (1.0, 1.0)]))
def test_square_boxes_lie_within_the_image(seed: int, side: tuple[float, float]) -> None:
    chances = torch.rand(4, 30, generator=torch.Generator().manual_seed(seed))
    boxes = square_boxes(chances, side, 0.5)
    assert torch.equal(boxes.height, boxes.width)
    assert (boxes.height >= side[0] - 1e-6).all()
    assert (boxes.height <= side[1] + 1e-6).all()
    _assert_within(boxes)
    assert set(boxes.flip.tolist()) <= {0.0, 1.0}


@given(seed=seeds, area=st.sampled_from([(0.2, 1.0), (0.08, 0.5), (1.0, 1.0)]))
def test_random_resized_boxes_lie_within_the_image(seed: int, area: tuple[float, float]) -> None:
    boxes = random_resized_boxes(30, area, 0.75, torch.Generator().manual_seed(seed))
    _assert_within(boxes)
    assert (boxes.height * boxes.width <= area[1] + 1e-5).all()
    uncut = (boxes.height < 1) & (boxes.width < 1)
    assert ((boxes.height * boxes.width)[uncut] >= area[0] - 1e-5).all()
    aspect = (boxes.width / boxes.height)[uncut]
    assert (aspect >= 3 / 4 - 1e-5).all()
    assert (aspect <= 4 / 3 + 1e-5).all()


def _assert_within(boxes: Boxes) -> None:
    for start, length in ((boxes.top, boxes.height), (boxes.left, boxes.width)):
        assert (start >= -1e-6).all()
        assert (start + length <= 1 + 1e-6).all()
        assert (length > 0).all()


def _maker(**changes: object) -> ViewMaker:
    settings = {
        "side": (0.5, 1.0),
        "flip_probability": 0.5,
        "crop_first": True,
        "size_px": 4,
        "strengths": _strengths(jitter_probability=0.0, gray_probability=0.0, blur_probability=0.0),
        "color_views": "both",
        "clean_px": None,
    }
    return ViewMaker(**{**settings, **changes})


def _pair(maker: ViewMaker, image: torch.Tensor, seed: int) -> tuple[View, View]:
    plan = maker.draw(len(image), image, torch.Generator().manual_seed(seed))
    return maker.render(image, plan, 0), maker.render(image, plan, 1)


@pytest.mark.parametrize("crop_first", [True, False])
def test_cutting_the_image_and_cutting_a_feature_map_agree_where_features_are_pixels(
    crop_first: bool,
) -> None:
    """The siamese scheme's two ways to the same pixels, without colour and with features that are colours."""
    image = _image(seed=3, count=4)
    cut, uncut = _pair(_maker(crop_first=crop_first), image, seed=5)
    assert uncut.image.shape == (4, 3, 4, 4)
    assert cut.boxes is None
    assert uncut.boxes is not None
    torch.testing.assert_close(cut.image, resample(image, uncut.boxes, (4, 4)), rtol=0, atol=1e-6)
    assert len(set(uncut.boxes.flip.tolist())) == 2


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_cutting_commutes_with_the_prediction_of_pixels(flip: float) -> None:
    """A network that sees one pixel at a time: cut and predict, or predict and cut, is the same."""
    weight = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    image = _image(seed=4, count=3)[:, :, :, :3]
    cut, uncut = _pair(_maker(size_px=image.shape[2], flip_probability=flip), image, seed=6)
    after = cut_features(torch.nn.functional.conv2d(uncut.image, weight), uncut.boxes)
    torch.testing.assert_close(torch.nn.functional.conv2d(cut.image, weight), after, rtol=0, atol=1e-5)


@pytest.mark.parametrize("crop_first", [True, False])
def test_the_colours_of_the_two_views_are_drawn_apart(crop_first: bool) -> None:
    maker = _maker(
        side=(1.0, 1.0),
        flip_probability=0.0,
        size_px=8,
        strengths=_strengths(jitter_probability=1.0),
        crop_first=crop_first,
    )
    cut, uncut = _pair(maker, _image(count=3).repeat(1, 1, 2, 2), seed=0)
    assert all((a - b).abs().max() > 0.01 for a, b in zip(cut.image, uncut.image, strict=True))


def test_colours_come_after_the_cut_or_before_it() -> None:
    """Contrast turns about the mean grey, so it makes a difference what of the image is there."""
    image = _image(count=4).repeat(1, 1, 4, 3)
    strengths = _strengths(jitter_probability=1.0, contrast=0.9, blur_probability=0.0)
    for crop_first in (True, False):
        maker = _maker(strengths=strengths, crop_first=crop_first, size_px=12)
        plan = maker.draw(len(image), image, torch.Generator().manual_seed(1))
        cut_first = apply_colour(resample(image, plan.boxes, (12, 12)), plan.jitters[0])
        cut_last = resample(apply_colour(image, plan.jitters[0]), plan.boxes, (12, 12))
        expected, other = (cut_first, cut_last) if crop_first else (cut_last, cut_first)
        found = maker.render(image, plan, 0).image
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert (found - other).abs().max() > 0.01


def test_clean_colours_are_those_of_the_same_place() -> None:
    image = _image(count=3).repeat(1, 1, 2, 2)
    maker = _maker(strengths=_strengths(jitter_probability=1.0), clean_px=4, size_px=8)
    plan = maker.draw(len(image), image, torch.Generator().manual_seed(2))
    for number, box in ((0, plan.boxes), (1, whole(3))):
        view = maker.render(image, plan, number)
        assert view.colors is not None
        torch.testing.assert_close(view.colors, resample(image, box, (4, 4)))
    assert _pair(_maker(), image, 0)[0].colors is None


def test_jitter_of_each_kind_on_its_own() -> None:
    strengths = _strengths(jitter_probability=0.5, gray_probability=0.0)
    for together in (True, False):
        drawn = draw_jitter(
            400,
            SimpleNamespace(**{**vars(strengths), "jitter_together": together}),
            32,
            torch.Generator().manual_seed(0),
        )
        changed = torch.stack(
            [drawn.brightness != 1, drawn.contrast != 1, drawn.saturation != 1, drawn.hue_turns != 0]
        ).sum(0)
        assert (set(changed.tolist()) == {0, 4}) == together
        assert abs(float(changed.float().mean()) - 2) < 0.2


@given(seed=seeds)
def test_guides_are_kept_views_one_for_each_image_that_has_any(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept = torch.from_numpy(np.where(rng.random((8, 6)) < 0.2, rng.integers(0, 4, (8, 6)), -1))
    rows, view = draw_guides(kept, torch.Generator().manual_seed(seed))
    assert rows.tolist() == [row for row in range(8) if max(kept[row].tolist()) >= 0]
    assert all(kept[row, v] >= 0 for row, v in zip(rows.tolist(), view.tolist(), strict=True))


def test_every_kept_view_gets_its_turn() -> None:
    kept = torch.tensor([[-1, 2, -1, 0, 5, -1]])
    seen = {int(draw_guides(kept, torch.Generator().manual_seed(seed))[1]) for seed in range(40)}
    assert seen == {1, 3, 4}


def test_lab_of_colours_that_are_known() -> None:
    """CIE L*a*b* under D65 of black, white, grey and the primaries, to the figures that tables give."""
    colors = {
        (0, 0, 0): (0, 0, 0),
        (1, 1, 1): (100, 0, 0),
        (0.5, 0.5, 0.5): (53.39, 0, 0),
        (1, 0, 0): (53.24, 80.09, 67.20),
        (0, 1, 0): (87.73, -86.18, 83.18),
        (0, 0, 1): (32.30, 79.19, -107.86),
    }
    image = torch.tensor(list(colors)).T[None, :, :, None].float()
    found = 100 * to_lab(image)[0, :, :, 0].T
    torch.testing.assert_close(found, torch.tensor(list(colors.values())).float(), atol=0.05, rtol=0)


def test_gradients_of_lab_are_finite() -> None:
    image = torch.tensor([0.0, 0.001, 0.04045, 0.5, 1.0]).repeat(3, 1)[None, :, :, None].requires_grad_()
    to_lab(image).sum().backward()
    assert torch.isfinite(image.grad).all()


def test_blur_in_pixels_of_the_image_itself() -> None:
    """A reference of 0: sigma does not scale with the image."""
    strengths = _strengths(blur_probability=1.0, blur_sigma_px=[1.5, 1.5], blur_reference_px=0)
    for image_px in (16, 640):
        jitter = draw_jitter(4, strengths, image_px, torch.Generator().manual_seed(0))
        assert jitter.blur_sigma_px.tolist() == [1.5] * 4


@pytest.mark.parametrize("color_views", ["both", "second"])
def test_the_first_view_may_be_learnt_from_in_its_own_colours(color_views: str) -> None:
    """PiCIE's code on Cityscapes clusters the first view in changed colors, and discards them in training."""
    strong = _strengths(jitter_probability=1.0, gray_probability=0.5, blur_probability=1.0)
    image, maker = _image(seed=3, count=4), _maker(color_views=color_views, strengths=strong)
    plan = maker.draw(len(image), image, torch.Generator().manual_seed(1))
    clustered = maker.pair(image, plan)
    learnt = maker.trained(clustered, image, plan)
    uncolored, _ = _pair(_maker(), image, seed=1)
    colored, second = _pair(_maker(strengths=strong), image, seed=1)
    torch.testing.assert_close(clustered.images, torch.cat([colored.image, second.image]))
    first = colored if color_views == "both" else uncolored
    torch.testing.assert_close(learnt.images, torch.cat([first.image, second.image]))
    torch.testing.assert_close(torch.stack(learnt.boxes), torch.stack(clustered.boxes))
    assert not torch.allclose(colored.image, uncolored.image, atol=0.01)
