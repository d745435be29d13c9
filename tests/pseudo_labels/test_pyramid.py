"""The six views (4.2.1), and their embedding against cropping and resizing by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.backbone.resnet import ResNet
from stages.embed import crop_boxes, embed_views
from stages.imaging.batches import ImageSource
from stages.pseudo_labels.pyramid import NOT_KEPT, VIEWS, has_parts, view_boxes
from stages.settings.data_size import NUM_VIEWS
from stages.settings.schema import Embed

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def test_parts_guide_where_a_view_other_than_the_first_is_kept() -> None:
    kept = np.full((3, 6), NOT_KEPT)
    kept[:, 0] = 0
    assert not has_parts(kept)
    kept[1, 5] = 0
    assert has_parts(kept)


def test_boxes_of_the_six_views() -> None:
    assert VIEWS == ("whole", "top left", "top right", "bottom left", "bottom right", "centre")
    expected = [
        (0, 0, 1, 1),
        (0, 0, 0.6, 0.6),
        (0, 0.4, 0.6, 0.6),
        (0.4, 0, 0.6, 0.6),
        (0.4, 0.4, 0.6, 0.6),
        (0.2, 0.2, 0.6, 0.6),
    ]
    torch.testing.assert_close(view_boxes(0.6), torch.tensor(expected, dtype=torch.float32))


def test_the_check_of_settings_knows_how_many_views_there_are() -> None:
    assert len(VIEWS) == NUM_VIEWS


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.99])
def test_boxes_lie_within_the_image_and_touch_its_corners(ratio: float) -> None:
    top, left, height, width = view_boxes(ratio).double().unbind(1)
    bottom, right = top + height, left + width
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= 1 + 1e-6).all()
    assert (right <= 1 + 1e-6).all()
    torch.testing.assert_close(bottom[3:5], torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(right[[2, 4]], torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(top[5], 1 - bottom[5], atol=1e-6, rtol=0)


def test_the_centre_of_a_view_is_taken_about_its_middle() -> None:
    boxes = crop_boxes(torch.tensor([0, 2, 5]), 0.5, 0.875)
    assert boxes.height.tolist() == pytest.approx([0.875, 0.4375, 0.4375])
    assert boxes.width.tolist() == pytest.approx([0.875, 0.4375, 0.4375])
    assert boxes.top.tolist() == pytest.approx([0.0625, 0.03125, 0.28125])
    assert boxes.left.tolist() == pytest.approx([0.0625, 0.53125, 0.28125])
    assert boxes.flip.tolist() == [0, 0, 0]


def _by_hand(images: np.ndarray, side: int, offset: tuple[int, int], size_px: int) -> torch.Tensor:
    """Cut whole pixels, then resize with torch's own anti-aliased bilinear filter, then normalise."""
    top, left = offset
    cut = torch.from_numpy(images[:, top : top + side, left : left + side].astype(np.float32) / 255)
    resized = F.interpolate(
        cut.permute(0, 3, 1, 2), (size_px, size_px), mode="bilinear", align_corners=False, antialias=True
    )
    return (resized - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


@pytest.mark.parametrize("batch_size", [2, 8])
def test_embeddings_are_those_of_cropped_and_resized_images(batch_size: int, device: torch.device) -> None:
    torch.manual_seed(0)
    backbone = ResNet("resnet18", 8, 2)
    rng = np.random.default_rng(0)
    # Smooth images: what lies just beyond a crop's border matters little.
    coarse = torch.from_numpy(rng.random((5, 3, 4, 4)))
    smooth = F.interpolate(coarse, (48, 48), mode="bicubic", align_corners=False).clamp(0, 1)
    images = (255 * smooth).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    batches = embed_views(
        backbone,
        ImageSource(images, device),
        Embed(batch_size=batch_size, image_px=32, centre_ratio=1.0),
        batches=list(torch.arange(5).split(batch_size)),
        crop_ratio=0.5,
        precision="float32",
    )
    found = torch.cat(list(batches)).cpu().numpy()
    assert (found.dtype, found.shape) == (np.float32, (5, 6, 64))
    unit = found / np.linalg.norm(found, axis=2, keepdims=True)
    assert not backbone.training
    backbone.cpu()
    crops = [(48, (0, 0)), *((24, corner) for corner in [(0, 0), (0, 24), (24, 0), (24, 24), (12, 12)])]
    for view, (side, offset) in enumerate(crops):
        with torch.no_grad():
            last = backbone(_by_hand(images, side, offset, 32)).layer4
        expected = last.double().flatten(2).mean(2)
        if view == 0:
            np.testing.assert_allclose(found[:, 0], expected.numpy(), rtol=5e-3, atol=1e-3)
        expected /= expected.norm(dim=1, keepdim=True)
        cosine = (expected.numpy() * unit[:, view]).sum(1)
        assert (cosine > (0.99999 if view == 0 else 0.995)).all(), (VIEWS[view], cosine)
        others = [v for v in range(6) if v != view]
        assert (cosine[:, None] > (expected.numpy()[:, None] * unit[:, others]).sum(2)).all()
