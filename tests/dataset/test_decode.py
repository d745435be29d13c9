"""Decoding and working size against slow oracles, and what must hold for the demo whatever it draws."""

import struct
import warnings
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import confusion_matrix
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from stages.dataset import decode, label_maps
from stages.dataset.protocols import square_image, square_labels
from stages.dataset.source import DataSet, list_data
from stages.dataset.taxonomy import Taxonomy, plain
from stages.readers.demo.demo import draw_item
from stages.readers.demo.scenes import CLASSES, SCENES
from stages.settings.errors import UserError
from tests.datasets import prepare_settings


def decode_image(content: bytes, **options: Any) -> Image.Image:
    return decode.decode_image(content, **options)[0]


def decode_labels(content: bytes, taxonomy: Taxonomy) -> np.ndarray:
    return label_maps.decode_labels(content, taxonomy)[0]


sides = st.integers(1, 40)


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def taxonomy(num_classes: int) -> Taxonomy:
    return plain(tuple(map(str, range(num_classes))))


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def triangle_weights(size: int, target: int) -> np.ndarray:
    """Weights [target, size]: a tent about each target pixel's centre, as wide as the shrinking asks."""
    scale = size / target
    support = max(scale, 1.0)
    weights = np.zeros((target, size))
    for row in range(target):
        centre = (row + 0.5) * scale
        for column in range(size):
            weights[row, column] = max(0.0, 1 - abs(column + 0.5 - centre) / support)
    return weights / weights.sum(1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(width=sides, height=sides, side=st.integers(1, 24))
def test_square_image_is_a_tent_filter_and_a_centre_crop(width: int, height: int, side: int) -> None:
    pixels = picture(width, height)
    short = min(width, height)
    new_width, new_height = side * width // short, side * height // short
    rows, columns = triangle_weights(height, new_height), triangle_weights(width, new_width)
    resized = np.einsum("ij,jkc,lk->ilc", rows, pixels.astype(float), columns)
    left, top = round((new_width - side) / 2.0), round((new_height - side) / 2.0)
    expected = resized[top : top + side, left : left + side]
    found = square_image(Image.fromarray(pixels), side)
    assert found.shape == (side, side, 3)
    assert np.abs(found - expected).max() <= 1.5  # Pillow rounds after each of its two passes


@settings(max_examples=40, deadline=None)
@given(width=sides, height=sides, side=st.integers(1, 24))
def test_every_protocol_agrees_with_torchvision_to_the_bit(width: int, height: int, side: int) -> None:
    image, labels = Image.fromarray(picture(width, height)), Image.fromarray(picture(width, height)[..., 0])
    for found, original, mode in (
        (square_image(image, side), image, InterpolationMode.BILINEAR),
        (square_image(image, side, "picie"), image, InterpolationMode.BILINEAR),
        (square_image(image, side, "stego"), image, InterpolationMode.NEAREST),
        (square_labels(np.asarray(labels), side), labels, InterpolationMode.NEAREST),
    ):
        resized = transforms.resize(original, [side], mode)
        np.testing.assert_array_equal(found, np.asarray(transforms.center_crop(resized, [side])))


def test_squares_side_by_side_need_a_picture_twice_as_wide() -> None:
    pixels = picture(32, 16)
    squares = [square_image(Image.fromarray(pixels), 16, "picie_long", tile) for tile in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(squares, axis=1), pixels)
    for width, height in ((31, 16), (16, 32)):
        with pytest.raises(UserError, match=f"is {width} x {height} px, but prepare.protocol: picie_long"):
            square_image(Image.fromarray(picture(width, height)), 16, "picie_long", 1)


@settings(max_examples=40, deadline=None)
@given(width=sides, height=sides, side=st.integers(1, 24))
def test_label_maps_get_no_new_ids(width: int, height: int, side: int) -> None:
    labels = picture(width, height)[..., 0]
    found = square_labels(labels, side)
    assert found.shape == (side, side)
    assert set(np.unique(found)) <= set(np.unique(labels))


def test_a_square_of_working_size_is_left_alone() -> None:
    pixels = picture(16, 16)
    np.testing.assert_array_equal(square_image(Image.fromarray(pixels), 16), pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I"])
def test_images_of_every_mode_become_rgb(mode: str) -> None:
    grey = np.array([[0, 255], [255, 0]], np.uint8)
    if mode in ("I;16", "I"):
        image = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    content = encoded(image, "TIFF" if mode in ("CMYK", "I") else "PNG")
    decoded = decode_image(content)
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_palette_with_transparency_becomes_rgb(alpha: int) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's would stand in the log of the stage
        assert decode_image(encoded(image, transparency=bytes([alpha, 255]))).mode == "RGB"


def test_the_rotation_of_a_camera_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to display
    pixels = picture(6, 4)
    decoded = decode_image(encoded(Image.fromarray(pixels), exif=exif))
    np.testing.assert_array_equal(np.asarray(decoded), np.rot90(pixels, -1))


def test_an_avif_is_read_and_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8] = 200
    decoded = decode_image(encoded(Image.fromarray(pixels), "AVIF", exif=exif))
    assert np.abs(np.asarray(decoded).astype(int) - np.rot90(pixels, -1)).max() < 20


def test_published_protocols_leave_the_rotation_of_a_camera() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = picture(6, 4)
    decoded = decode_image(encoded(Image.fromarray(pixels), exif=exif), upright=False)
    np.testing.assert_array_equal(np.asarray(decoded), pixels)


@pytest.mark.parametrize("kind", ["grey", "palette", "sixteen bits", "bilevel", "palette of 4 colours"])
def test_label_maps_keep_their_ids(kind: str) -> None:
    ids = np.array([[0, 1, 1], [1, 0, 1]], np.uint8)
    image, options = Image.fromarray(ids), {}
    if "palette" in kind:
        image.putpalette([200, 10, 10, 10, 200, 10])
        options = {"bits": 2} if "4" in kind else {}
    elif kind == "sixteen bits":
        image = Image.fromarray(ids.astype(np.uint16))
    elif kind == "bilevel":
        image = Image.fromarray(ids.astype(bool))
    np.testing.assert_array_equal(decode_labels(encoded(image, **options), taxonomy(2)), ids)


def test_label_maps_of_four_bits_are_not_stretched() -> None:
    # A 4-bit grey PNG, which optimisers write and Pillow does not: ids 1, 2, 3, 15 in one row.
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", 4, 1, 4, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\x12\x3f")) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode_labels(b"\x89PNG\r\n\x1a\n" + body, taxonomy(16)), [[1, 2, 3, 15]])


def test_ignored_pixels_are_no_class() -> None:
    ids = np.array([[0, 255]], np.uint8)
    np.testing.assert_array_equal(decode_labels(encoded(Image.fromarray(ids)), taxonomy(1)), ids)
    with pytest.raises(UserError, match=r"has class id 254, but classes.txt has 1 classes"):
        decode_labels(encoded(Image.fromarray(np.array([[254]], np.uint8))), taxonomy(1))


def demo_data(num_train: int, num_val: int) -> DataSet:
    return list_data(prepare_settings(demo__num_train=num_train, demo__num_val=num_val))


@pytest.fixture(scope="module")
def demo() -> dict[str, list[np.ndarray]]:
    data = demo_data(6 * len(SCENES), 4 * len(SCENES))
    return {split: [_labels(item) for item in getattr(data, split)] for split in ("train", "val")}


def _labels(item: Any) -> np.ndarray:
    labels = draw_item(item).labels
    assert labels is not None
    return labels


def test_every_class_of_the_demo_is_in_both_splits(demo: dict[str, list[np.ndarray]]) -> None:
    for labels in demo.values():
        counts = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=len(CLASSES))
        assert len(counts) == len(CLASSES)
        assert (counts / counts.sum() > 0.03).all()


def test_demo_scenes_show_both_bands_and_their_thing(demo: dict[str, list[np.ndarray]]) -> None:
    for labels in demo.values():
        for index, label in enumerate(labels):
            scene = list(SCENES.values())[index % len(SCENES)]
            assert {CLASSES[class_id] for class_id in np.unique(label)} == {*scene.bands, scene.thing}


def test_an_image_of_the_demo_depends_on_its_place_alone() -> None:
    few, many = demo_data(3, 2), demo_data(5, 4)
    assert few.train == many.train[:3]
    first, again, other = draw_item(few.train[2]), draw_item(many.train[2]), draw_item(few.val[1])
    assert first.files == again.files
    assert first.files[0].sha256 != other.files[0].sha256
    np.testing.assert_array_equal(np.asarray(first.image), np.asarray(again.image))
    np.testing.assert_array_equal(first.labels, again.labels)


def test_every_class_of_the_demo_meets_several_others() -> None:
    met: dict[str, set[str]] = {name: set() for name in CLASSES}
    for scene in SCENES.values():
        shown = {*scene.bands, scene.thing}
        for name in shown:
            met[name] |= shown - {name}
    assert min(len(others) for others in met.values()) >= 3


def test_mean_colours_do_not_tell_the_classes_of_the_demo_apart() -> None:
    data = demo_data(4 * len(SCENES), 1)
    colors: dict[int, list[np.ndarray]] = {}
    for item in data.train:
        decoded = draw_item(item)
        assert decoded.labels is not None
        for class_id in np.unique(decoded.labels):
            colors.setdefault(int(class_id), []).append(
                np.asarray(decoded.image)[decoded.labels == class_id].mean(0)
            )
    within = np.mean([np.var(samples, axis=0).sum() for samples in colors.values()])
    between = np.var([np.mean(samples, axis=0) for samples in colors.values()], axis=0).sum()
    assert between < 0.5 * within


def test_kmeans_on_color_and_position_fails_on_the_demo() -> None:
    drawn = [draw_item(item) for item in demo_data(8 * len(SCENES), 1).train]
    place = np.stack(np.meshgrid(*[np.linspace(0, 1, 20)] * 2), -1)
    pixels = np.concatenate(
        [np.dstack([np.asarray(one.image)[::8, ::8] / 255, place]).reshape(-1, 5) for one in drawn]
    )
    truth = np.concatenate([one.labels[::8, ::8].ravel() for one in drawn if one.labels is not None])
    found = KMeans(len(CLASSES), n_init=2, random_state=0).fit_predict(pixels)
    both = confusion_matrix(truth, found, labels=range(len(CLASSES)))
    iou = both / (both.sum(0) + both.sum(1)[:, None] - both)
    assert iou[linear_sum_assignment(-both)].mean() < 0.15
