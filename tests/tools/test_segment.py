"""`segment` through its command line: the trained model on images of any size."""

import json
import os
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


def _run(*more: str) -> int:
    """Exit code of a run."""
    try:
        segment.main([*SEGMENT, *more])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_damaged_image_is_named_and_the_others_are_done(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos/notes.png").write_text("shopping list")
    assert _run() == 1
    said = capsys.readouterr().out
    assert (
        "segment: left out 1: damaged (notes.png: is not an image format supported by Pillow; replace or "
        "remove it)"
    ) in said
    assert "segment: wrote 3 images to found" in said
    assert Path("found/legend.json").exists()
    assert sorted(path.name for path in Path("found").rglob("*.png")) == [
        "square.png",
        "tiny.png",
        "wide.png",
    ]
    assert list(json.loads(Path("found/segment.json").read_text())["files"]) == [
        "legend.json",
        *(f"{name}{end}" for name in ("square", "tiny", "trip/wide") for end in (".png", "_overlay.jpg")),
    ]


@pytest.mark.parametrize(
    ("out", "how"),
    [
        ("photos", "is"),
        ("photos/segmented", "lies in"),
        (".", "holds"),
        ("trip/../photos", "is"),
        ("link", "is"),
    ],
)
def test_an_output_folder_that_is_not_apart_is_refused(ready: Any, out: str, how: str) -> None:
    Path("link").symlink_to("photos")
    Path("trip").mkdir()
    before = {path: path.read_bytes() for path in Path("photos").rglob("*") if path.is_file()}
    assert ready.fault(segment.main, [*SEGMENT, "--out", out]) == (
        f"--out {Path(out)}: {how} the folder of the images, photos; choose a folder apart from it, so that "
        "no image is replaced and no output is taken for an image"
    )
    assert {path: path.read_bytes() for path in Path("photos").rglob("*") if path.is_file()} == before


def test_files_of_others_are_never_replaced(ready: Any) -> None:
    """Hand-made label maps, for example."""
    Path("found").mkdir()
    Path("found/square.png").write_text("hand-made")
    for more in ([], ["--overwrite"]):
        assert ready.fault(segment.main, [*SEGMENT, *more]) == (
            "found: has 1 files that segment would replace but has not written, or that were changed since "
            "(square.png); choose another folder with --out"
        )
    assert Path("found/square.png").read_text() == "hand-made"
    assert [path.name for path in Path("found").iterdir()] == ["square.png"]


def test_own_files_are_replaced_when_asked(ready: Any) -> None:
    assert _run() == 0
    assert ready.fault(segment.main, SEGMENT) == (
        "found: has 7 files of an earlier run (legend.json, square.png, square_overlay.jpg); pass "
        "--overwrite to replace them, or choose another folder with --out"
    )
    write_image(Path("photos/more.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    assert _run("--overwrite") == 0
    assert len(json.loads(Path("found/segment.json").read_text())["files"]) == 9


def test_a_label_map_that_was_corrected_by_hand_is_no_longer_its_own(ready: Any) -> None:
    assert _run() == 0
    corrected = Path("found/square.png")
    corrected.write_bytes(b"corrected")
    os.utime(corrected, ns=(1, 1))
    message = ready.fault(segment.main, [*SEGMENT, "--overwrite"])
    assert "or that were changed since (square.png)" in message
    assert corrected.read_bytes() == b"corrected"


def test_a_file_of_others_with_the_name_of_the_manifest_is_kept(ready: Any) -> None:
    Path("found").mkdir()
    Path("found/segment.json").write_text('{"mine": 1}')
    assert "(segment.json); choose another folder" in ready.fault(segment.main, SEGMENT)
    assert Path("found/segment.json").read_text() == '{"mine": 1}'


def test_after_a_kill_the_files_of_the_run_are_its_own(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as inner:
        inner.setattr(segment, "_report", killed)
        inner.setattr(segment, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            segment.main(SEGMENT)
    assert Path("found/square.png").exists()
    assert _run("--overwrite") == 0


def test_remarks_and_the_range_are_said(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save("photos/deep.png")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save("photos/cut.png")
    assert _run() == 0
    said = capsys.readouterr().out
    assert "segment: images with 16 bits per channel use 12 of them: 0 to 4,095 becomes 0 to 255" in said
    assert "segment: 1 images have transparent pixels; they are laid over white (cut.png)" in said


def test_a_folder_that_is_not_there_is_no_folder_without_permission(ready: Any) -> None:
    assert ready.fault(segment.main, [*SEGMENT, "--images", "typo"]) == (
        "typo: no such folder; pass a folder of images"
    )


def test_a_tall_narrow_image(ready: Any) -> None:
    write_image(Path("photos/scan.png"), np.zeros((60_000, 2, 3), dtype=np.uint8))
    assert _run() == 0
    assert Image.open("found/scan.png").size == (2, 60_000)


def test_what_is_no_picture_of_the_users_is_left_out(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """As `prepare` does."""
    Path("photos/._square.png").write_text("x")
    write_image(Path("photos/@eaDir/square.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    write_image(Path("photos/square_mask.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    Path("photos/folder.jpg").mkdir()
    Path("photos/gone.png").symlink_to("nowhere")
    assert _run() == 0
    said = capsys.readouterr().out
    assert "segment: wrote 3 images" in said
    assert "left out 2: hidden, or made by the system (" in said
    assert "left out 1: label map among the images, by its name (square_mask.png)" in said
    assert "left out 1: link to nothing (gone.png)" in said


def test_an_overlay_that_is_too_wide_for_its_format_is_shrunk(ready: Any) -> None:
    write_image(Path("photos/scan.png"), np.zeros((2, 65_600, 3), dtype=np.uint8))
    assert _run() == 0
    assert Image.open("found/scan.png").size == (65_600, 2)
    assert Image.open("found/scan_overlay.jpg").size[0] == 65_500


@pytest.mark.parametrize("band", [1, 1000, 1 << 24])
def test_bands_are_what_the_whole_image_is(ready: Any, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argmax of upsampled scores, computed without holding clusters times pixels."""
    monkeypatch.setattr(segment, "BAND_ELEMENTS", band)
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    centroids = ready.tensors("pixel_centroids.safetensors")[0]["centroids"]
    picture = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    found = segment.segment(segmenter, centroids, picture, 32, torch.device("cpu"))
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    size = (32, 40)  # multiples of the stride of the context grid
    small = F.interpolate(image, size, mode="bilinear", antialias=True)
    with torch.no_grad():
        scores = torch.einsum("ndhw,kd->nkhw", F.normalize(segmenter(small)), centroids)
    full = F.interpolate(scores, picture.shape[:2], mode="bilinear", align_corners=False)
    assert (found == full.argmax(1)[0].numpy()).mean() > 0.99


def test_sixteen_bits_are_brought_to_eight_and_not_cut_off(ready: Any) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 256).save("photos/deep.png")
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save("photos/plain.png")
    segment.main(SEGMENT)
    assert (np.array(Image.open("found/deep.png")) == np.array(Image.open("found/plain.png"))).all()


def test_of_two_images_of_one_name_one_is_left_out(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(Path("photos/square.jpg"), np.zeros((8, 8, 3), dtype=np.uint8))
    assert _run() == 1
    said = capsys.readouterr().out
    assert "left out 1: same name as another image but for the suffix (square.png)" in said
