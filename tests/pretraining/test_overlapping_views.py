"""Pairs of views that overlap, and their intersection in each, against plain geometry."""

import pytest
import torch
from torchvision.ops import roi_align

from stages.imaging.resample import Boxes, resample
from stages.pretraining.slots import align
from stages.pretraining.views import (
    Look,
    Views,
    intersections,
    overlapping_boxes,
    random_resized_boxes,
    render_overlapping,
)
from stages.settings.params import load
from tests.datasets import REPOSITORY

PHOTOMETRIC = load(REPOSITORY / "params.yaml", "pretrain").pretrain.photometric
COUNT = 500


def _pair(overlap: float, seed: int = 0) -> tuple[Boxes, Boxes]:
    generator = torch.Generator().manual_seed(seed)
    first = random_resized_boxes(COUNT, (0.08, 1.0), 0.75, generator)
    return first, overlapping_boxes(first, (0.08, 1.0), 0.75, overlap, generator)


@pytest.mark.parametrize("overlap", [0.01, 0.3, 1.0])
def test_second_views_lie_in_the_image_and_overlap(overlap: float) -> None:
    first, second = _pair(overlap)
    apart = random_resized_boxes(COUNT, (0.08, 1.0), 0.75, torch.Generator().manual_seed(9))
    for start, length in (("top", "height"), ("left", "width")):
        a, b = (getattr(box, start) for box in (first, second))
        m, n = (getattr(box, length) for box in (first, second))
        assert (b >= -1e-6).all()
        assert (b + n <= 1 + 1e-6).all()
        shared = torch.minimum(a + m, b + n) - torch.maximum(a, b)
        assert (shared >= overlap * torch.minimum(m, n) - 1e-6).all()
        c, o = getattr(apart, start), getattr(apart, length)
        assert (torch.minimum(a + m, c + o) < torch.maximum(a, c)).any(), "others need not overlap"
    assert 0.4 < float(second.flip.mean()) < 0.6
    area = second.height * second.width
    assert (area >= 0.08 - 1e-6).all()


def test_the_intersection_lies_in_both_views_and_in_the_same_place_of_the_image() -> None:
    first, second = _pair(0.1)
    found = intersections(first, second)
    for image in range(COUNT):
        places = []
        for view, common in zip((first, second), found, strict=True):
            top, left, height, width, flip = (float(part[image]) for part in common)
            assert min(top, left) >= -1e-5
            assert max(top + height, left + width) <= 1 + 1e-5
            if flip:  # the view is mirrored, so the image's left is the view's right
                left = 1 - left - width
            v = [float(part[image]) for part in view]
            places.append((v[0] + top * v[2], v[1] + left * v[3], height * v[2], width * v[3]))
        assert places[0] == pytest.approx(places[1], abs=1e-5)


@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_aligned_maps_show_the_same_cells_whatever_the_flips(flips: tuple[float, float]) -> None:
    """Maps that hold each cell's place in the image, which interpolation keeps inside the map."""
    first, second = _pair(0.3)
    first, second = (
        view._replace(flip=torch.full((COUNT,), flip))
        for view, flip in zip((first, second), flips, strict=True)
    )
    side = 7
    cells = (torch.arange(side) + 0.5) / side
    maps = []
    for view in (first, second):
        across = torch.where(view.flip[:, None] > 0, 1 - cells, cells)
        rows = view.top[:, None] + cells * view.height[:, None]
        columns = view.left[:, None] + across * view.width[:, None]
        maps.append(
            torch.stack([rows[:, :, None].expand(-1, -1, side), columns[:, None].expand(-1, side, -1)], 1)
        )
    common = intersections(first, second)
    aligned = [align(one, box) for one, box in zip(maps, common, strict=True)]
    top, left = (torch.maximum(*pair) for pair in ((first.top, second.top), (first.left, second.left)))
    bottom = torch.minimum(first.top + first.height, second.top + second.height)
    right = torch.minimum(first.left + first.width, second.left + second.width)
    for one, view in zip(aligned, (first, second), strict=True):
        for axis, (start, end) in enumerate(((top, bottom), (left, right))):
            inside = (start[:, None] + cells * (end - start)[:, None]).view(
                COUNT, *((side, 1), (1, side))[axis]
            )
            length = (view.height, view.width)[axis]
            border = (view.top, view.left)[axis]
            low, high = border + length / side / 2, border + length * (1 - 0.5 / side)
            expected = inside.expand(-1, side, side).clamp(low[:, None, None], high[:, None, None])
            torch.testing.assert_close(one[:, axis], expected, atol=1e-4, rtol=0)


def test_equal_views_have_equal_aligned_maps_that_are_whole() -> None:
    first, _ = _pair(0.1)
    score = torch.randn(COUNT, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    one, other = intersections(first, first)
    unmirrored = torch.where(first.flip.view(-1, 1, 1, 1) > 0, score.flip(3), score)
    torch.testing.assert_close(align(score, one), unmirrored, atol=1e-4, rtol=0)
    assert torch.equal(align(score, one), align(score, other))


def test_alignment_is_that_of_roi_align() -> None:
    first, second = _pair(0.2)
    common, _ = intersections(first, second)
    score = torch.randn(COUNT, 4, 7, 7, generator=torch.Generator().manual_seed(2))
    left, top = common.left * 7, common.top * 7
    corners = [left, top, left + common.width * 7, top + common.height * 7]
    rois = torch.stack([torch.arange(COUNT).float(), *corners], 1)
    expected = roi_align(score, rois, (7, 7), sampling_ratio=1, aligned=True)
    expected = torch.where(common.flip.view(-1, 1, 1, 1) > 0, expected.flip(3), expected)
    torch.testing.assert_close(align(score, common), expected, atol=1e-3, rtol=0)


def test_alignment_has_a_gradient() -> None:
    boxes = Boxes(*(torch.tensor([value], dtype=torch.float64) for value in (0.2, 0.1, 0.6, 0.7, 1.0)))
    score = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda score: align(score, boxes), (score,))


def _drawn(looks: tuple[Look, Look], seed: int = 3) -> tuple[list[torch.Tensor], list[Boxes]]:
    plain = {"jitter_probability": 0.0, "gray_probability": 0.0, "blur_reference_px": 0}
    views = Views(PHOTOMETRIC.model_copy(update=plain), 0.75, torch.Generator().manual_seed(seed))
    image = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    image = resample(image, Boxes.of(torch.tensor([[0.0, 0, 1, 1]] * 6)), (10, 10))
    return render_overlapping(image, views.draw_overlapping(6, (0.2, 1.0), 16, 0.5, looks), 16)


def test_each_view_has_blur_and_inverted_colors_of_its_own() -> None:
    plain, inverted = Look(0.0, 0.0), Look(0.0, 1.0)
    as_they_are, common = _drawn((plain, plain))
    second_inverted, same = _drawn((plain, inverted))
    assert all(
        torch.equal(*pair) for one in zip(common, same, strict=True) for pair in zip(*one, strict=True)
    )
    torch.testing.assert_close(second_inverted[0], as_they_are[0])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    before, after = (one[1] * std + mean for one in (as_they_are, second_inverted))
    bright = before >= 0.5
    torch.testing.assert_close(after[bright], 1 - before[bright])
    torch.testing.assert_close(after[~bright], before[~bright])
    blurred, _ = _drawn((Look(1.0, 0.0), plain))
    assert not torch.allclose(blurred[0], as_they_are[0])
    torch.testing.assert_close(blurred[1], as_they_are[1])
