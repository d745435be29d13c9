"""`segment` through its command line: the trained model on images of any size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stages.segmenter.segmenter_file import load_segmenter
from stages.tools import segment
from tests.datasets import write_image

SEGMENT = ["--images", "photos", "--out", "found", "--device", "cpu"]
SEGMENT += ["--segmenter", "segmenter.safetensors", "--centroids", "pixel_centroids.safetensors"]


@pytest.fixture
def ready(bench: Any) -> Any:
    bench.write_segmenter()
    bench.write_centroids()
    rng = np.random.default_rng(0)
    for name, height, width in (("square.png", 32, 32), ("trip/wide.jpg", 50, 90), ("tiny.bmp", 7, 5)):
        write_image(Path("photos") / name, rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return bench


def test_every_image_gets_a_map_and_an_overlay_of_its_own_size(ready: Any) -> None:
    segment.main(SEGMENT)
    for name, size in (("square", (32, 32)), ("trip/wide", (90, 50)), ("tiny", (5, 7))):
        labels = Image.open(f"found/{name}.png")
        assert (labels.mode, labels.size) == ("P", size)
        assert np.asarray(labels).max() < 3
        assert Image.open(f"found/{name}_overlay.jpg").size == size
    legend = json.loads(Path("found/legend.json").read_text())["rgb"]
    assert list(legend) == ["cluster 0", "cluster 1", "cluster 2"]
    colours = np.asarray(Image.open("found/square.png").convert("RGB"))
    clusters = np.asarray(Image.open("found/square.png"))
    np.testing.assert_array_equal(colours, np.array(list(legend.values()))[clusters])


def test_at_the_working_size_it_is_what_the_network_says(ready: Any) -> None:
    segment.main(SEGMENT)
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    image = torch.from_numpy(np.asarray(Image.open("photos/square.png")).copy()).permute(2, 0, 1)[None] / 255
    centroids = ready.tensors("pixel_centroids.safetensors")[0]["centroids"]
    with torch.no_grad():
        scores = torch.einsum("ndhw,kd->nkhw", F.normalize(segmenter(image)), centroids)
    expected = F.interpolate(scores, size=(32, 32), mode="bilinear").argmax(1)[0].numpy()
    assert (np.asarray(Image.open("found/square.png")) == expected).mean() > 0.99


def test_a_panorama_is_shrunk_to_what_fits(ready: Any) -> None:
    write_image(Path("photos/panorama.png"), np.zeros((8, 800, 3), dtype=np.uint8))
    segment.main(SEGMENT)
    assert Image.open("found/panorama.png").size == (800, 8)


def test_a_folder_without_images_is_refused(ready: Any) -> None:
    Path("empty").mkdir()
    message = ready.fault(segment.main, [*SEGMENT, "--images", "empty"])
    assert message.startswith("empty: has no images (.jpg, .jpeg, .png,")


def test_a_file_that_is_no_image_is_named(ready: Any) -> None:
    Path("photos/notes.png").write_text("shopping list")
    message = ready.fault(segment.main, SEGMENT)
    assert message == "photos/notes.png: is not an image format supported by Pillow; replace or remove it"


def test_sixteen_bits_are_brought_to_eight_and_not_cut_off(ready: Any) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 256).save("photos/deep.png")
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save("photos/plain.png")
    segment.main(SEGMENT)
    assert (np.array(Image.open("found/deep.png")) == np.array(Image.open("found/plain.png"))).all()


def test_two_images_of_one_name_are_refused(ready: Any) -> None:
    write_image(Path("photos/square.jpg"), np.zeros((8, 8, 3), dtype=np.uint8))
    assert ready.fault(segment.main, SEGMENT) == (
        "photos/square.png: has the same name as photos/square.jpg except for the suffix; rename one of them"
    )
