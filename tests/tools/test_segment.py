"""`segment` through its command line: the trained model on images of any size."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from stages.core.artefacts import write_metrics
from stages.postprocessing.dense_crf import mean_field
from stages.reporting.legend import plain_legend, write_cluster_legend
from stages.reporting.lineage import lineage
from stages.reporting.names import Names
from stages.segmenter.segmenter_file import load_segmenter
from stages.settings.errors import UserError
from stages.tools import segment
from stages.tools.segmenting import label_files, pipeline, run_manifest, trained_model
from tests.datasets import REPOSITORY, png16, write_image

FLAGS = ["--out", "found", "--device", "cpu", "--model", "."]
SEGMENT = ["photos", *FLAGS]
NAMES = """names: {0: sky, 2: sky, 1: {name: road, color: "#102030"}}"""


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
    legend = json.loads(Path("found/legend.json").read_text())["clusters"]
    assert [row["name"] for row in legend] == ["cluster 0", "cluster 1", "cluster 2"]
    colours = np.asarray(Image.open("found/square.png").convert("RGB"))
    clusters = np.asarray(Image.open("found/square.png"))
    table = np.array([list(bytes.fromhex(row["color"][1:])) for row in legend])
    np.testing.assert_array_equal(colours, table[clusters])


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
    message = ready.fault(segment.main, ["empty", *FLAGS])
    assert message.startswith("empty: has no images (.jpg, .jpeg, .jpe, .jfif, .png,")


def test_an_overlay_is_half_the_image_and_half_the_colors(tmp_path: Path) -> None:
    picture = np.full((32, 48, 3), (200, 100, 40), np.uint8)
    ids, colours = np.zeros((32, 48), np.uint8), np.array([[10, 60, 200], [250, 20, 20]], np.uint8)
    ids[:, 16:] = 1  # at a border of JPEG's blocks
    label_files.write_outputs(tmp_path, ("a.png", "a_overlay.jpg"), picture.copy(), ids, None, colours)
    expected = (picture.astype(int) + colours[ids]) // 2
    found = np.asarray(Image.open(tmp_path / "a_overlay.jpg")).astype(int)
    inside = np.abs(np.arange(48) - 15.5) > 8
    assert np.abs(found - expected)[:, inside].max() <= 3


def test_threads_beside_the_network_change_no_file(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a GPU threads decode and write; files, their order and what is said remain."""
    rng = np.random.default_rng(1)
    for number in range(12):
        write_image(Path(f"photos/{number}.png"), rng.integers(0, 256, (20 + number, 40, 3), dtype=np.uint8))
    Path("photos/3b.png").write_text("shopping list")
    contents, said = [], []
    for pace in (pipeline.Pace(0, 1), pipeline.Pace(3, 4)):
        monkeypatch.setattr(pipeline.Pace, "beside", lambda _, pace=pace: pace)
        assert _run("--scores", "--overwrite") == 1
        contents.append({path: path.read_bytes() for path in Path("found").rglob("*.*g")})
        contents.append(list(json.loads(Path("found/segment.json").read_text())["images"].items()))
        contents.append(Path("found/manifest.csv").read_text())
        said.append(capsys.readouterr())
    assert contents[:3] == contents[3:]
    assert len(contents[0]) == 3 * 15
    assert said[0].err == said[1].err
    assert sorted(path.name for path in Path("found").glob(".*")) == []


@pytest.mark.parametrize(("pace", "batches"), [(None, [1] * 7), (pipeline.Pace(3, 4), [4, 1, 2])])
def test_images_of_one_size_wait_for_each_other_on_a_gpu_alone(
    ready: Any, monkeypatch: pytest.MonkeyPatch, pace: Any, batches: list[int]
) -> None:
    """In a batch, the images of which are in memory together."""
    shutil.rmtree("photos")
    for number in range(7):
        write_image(Path(f"photos/{number}.png"), np.zeros((32, 32 + 32 * (number > 4), 3), np.uint8))
    segmented, sizes = trained_model.TrainedModel.segment, []

    def count(model: Any, pictures: Any) -> Any:
        sizes.append(len(pictures))
        return segmented(model, pictures)

    monkeypatch.setattr(trained_model.TrainedModel, "segment", count)
    if pace is not None:
        monkeypatch.setattr(pipeline.Pace, "beside", lambda _: pace)
    assert _run() == 0
    assert sizes == batches


def test_an_image_that_cannot_be_written_ends_the_threads(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is that of a run without threads; what was written before it is kept, nothing unfinished."""
    monkeypatch.setattr(pipeline.Pace, "beside", lambda _: pipeline.Pace(2, 1))
    write = pipeline.write_outputs

    def fill_the_disk(out: Path, names: tuple[str, ...], *rest: Any) -> None:
        if names[0] == "tiny.png":
            raise UserError("the disk is full")
        write(out, names, *rest)

    monkeypatch.setattr(pipeline, "write_outputs", fill_the_disk)
    assert ready.fault(segment.main, SEGMENT) == "the disk is full"
    assert list(json.loads(Path("found/segment.json").read_text())["images"]) == ["square.png"]
    assert sorted(path.name for path in Path("found").iterdir()) == [
        "segment.json",
        "square.png",
        "square_overlay.jpg",
    ]
    assert not [one for one in threading.enumerate() if "ThreadPool" in one.name]


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
    output = capsys.readouterr()
    assert (
        "segment: left out 1: damaged (notes.png: is not an image format supported by Pillow; replace or "
        "remove it)"
    ) in output.err
    assert "segment: found has the label maps of 3 images" in output.out
    assert _run("--skip-broken", "--quiet") == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "notes.png" in output.err
    assert Path("found/legend.json").exists()
    assert sorted(path.name for path in Path("found").rglob("*.png")) == [
        "square.png",
        "tiny.png",
        "wide.png",
    ]
    assert list(json.loads(Path("found/segment.json").read_text())["files"]) == [
        "left_out.csv",
        "legend.json",
        "manifest.csv",
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
            "found: has 1 files that segment would replace but has not written (square.png); choose another "
            "folder with --out"
        )
    assert Path("found/square.png").read_text() == "hand-made"
    assert [path.name for path in Path("found").iterdir()] == ["square.png"]


def test_what_is_done_is_not_done_again(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run() == 0
    before = {path: path.stat().st_mtime_ns for path in Path("found").rglob("*.png")}
    write_image(Path("photos/more.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    write_image(Path("photos/tiny.bmp"), np.ones((9, 9, 3), dtype=np.uint8))
    capsys.readouterr()
    assert _run("--scores") == 0
    assert "done already" not in capsys.readouterr().out, "maps of confidence are missing"
    assert _run() == 0
    assert "segment: 4 images are done already" in capsys.readouterr().out
    assert Image.open("found/tiny.png").size == (9, 9)
    assert Path("found/square.png").stat().st_mtime_ns > before[Path("found/square.png")]
    rows = pd.read_csv("found/manifest.csv")
    assert rows["source"].tolist() == ["more.png", "square.png", "tiny.bmp", "trip/wide.jpg"]


def test_a_folder_of_the_model_that_is_missing_is_named_with_its_remedy(ready: Any) -> None:
    assert ready.fault(segment.main, ["photos", "--out", "found", "--model", "gone"]) == (
        "gone: no such folder; pass the folder of a trained model (`dvc repro` makes models)"
    )
    given = ["photos", "--out", "found", "--model", "segmenter.safetensors"]
    assert ready.fault(segment.main, given).startswith("segmenter.safetensors: is a file; pass the folder of")
    assert not Path("found").exists()


def test_maps_of_confidence_of_an_earlier_result_are_deleted(ready: Any) -> None:
    assert _run("--scores") == 0
    corrected = Path("found/tiny_confidence.png")
    corrected.write_bytes(b"mine")
    write_image(Path("photos/square.png"), np.ones((9, 9, 3), dtype=np.uint8))
    assert _run() == 0
    assert not Path("found/square_confidence.png").exists(), "it belongs to the old image"
    assert Path("found/trip/wide_confidence.png").exists(), "its image is as it was"
    assert _run("--overwrite") == 0
    assert not Path("found/trip/wide_confidence.png").exists()
    assert corrected.read_bytes() == b"mine"
    assert "wide_confidence" not in Path("found/segment.json").read_text()


def test_overlays_are_left_out_when_asked_and_made_by_a_later_run(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("--no-overlay", "--scores") == 0
    names = ("square", "tiny", "trip/wide")
    assert sorted(_images("found")) == sorted(
        f"{name}{end}.png" for name in names for end in ("", "_confidence")
    )
    capsys.readouterr()
    assert _run("--no-overlay") == 0
    assert "segment: 3 images are done already" in capsys.readouterr().out
    assert _run() == 0
    assert {f"{name}_overlay.jpg" for name in names} < set(_images("found"))
    write_image(Path("photos/square.png"), np.ones((9, 9, 3), dtype=np.uint8))
    assert _run("--no-overlay") == 0
    left = {name for name in _images("found") if name.endswith("_overlay.jpg")}
    assert left == {"tiny_overlay.jpg", "trip/wide_overlay.jpg"}, "that of the square was of the old image"
    assert _run("--no-overlay", "--overwrite") == 0
    assert sorted(_images("found")) == sorted(f"{name}.png" for name in names)


def _images(folder: str) -> list[str]:
    paths = (path for path in Path(folder).rglob("*") if path.suffix in (".png", ".jpg"))
    return [path.relative_to(folder).as_posix() for path in paths]


def test_without_overlays_names_may_be_longer(ready: Any) -> None:
    os.link("photos/square.png", f"photos/{'a' * 251}.png")
    assert _run() == 1
    assert _run("--no-overlay") == 0
    assert Path(f"found/{'a' * 251}.png").exists()


def test_another_model_or_other_options_replace_files_only_when_asked(ready: Any) -> None:
    assert _run() == 0
    Path("names.yaml").write_text(NAMES)
    assert ready.fault(segment.main, [*SEGMENT, "--names", "names.yaml"]) == (
        "found: has 8 files of a run with another list of colors and merged clusters (legend.json, "
        "manifest.csv, square.png); pass --overwrite to replace them, or choose another folder with --out"
    )
    assert _run("--names", "names.yaml", "--overwrite") == 0
    assert _run("--names", "names.yaml") == 0
    values = torch.randn(3, 8)
    save_file({"centroids": values}, "pixel_centroids.safetensors", {"about": "{}"})
    ready.claim_centroids()
    message = ready.fault(segment.main, [*SEGMENT, "--names", "names.yaml"])
    assert "of a run with another model (legend.json" in message


def test_all_that_is_left_out_is_in_a_table_as_long_as_there_is_something(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        Path(f"photos/{number}.png").write_text("shopping list")
    assert _run() == 1
    assert "segment: found/left_out.csv names every file that was left out\n" in capsys.readouterr().out
    table = pd.read_csv("found/left_out.csv")
    assert table["file"].tolist() == [f"{number}.png" for number in range(5)]
    assert set(table["reason"]) == {
        "damaged: is not an image format supported by Pillow; replace or remove it"
    }
    Path("photos/notes.txt").touch()
    for number in range(5):
        Path(f"photos/{number}.png").unlink()
    assert _run() == 0
    assert pd.read_csv("found/left_out.csv")["file"].tolist() == ["notes.txt"]
    Path("photos/notes.txt").unlink()
    capsys.readouterr()
    assert _run() == 0
    assert not Path("found/left_out.csv").exists()
    assert "left_out.csv" not in Path("found/segment.json").read_text() + capsys.readouterr().out


def test_a_table_of_others_is_never_replaced(ready: Any) -> None:
    Path("found").mkdir()
    Path("found/left_out.csv").write_text("mine")
    assert "(left_out.csv); choose another folder" in ready.fault(segment.main, SEGMENT)
    assert Path("found/left_out.csv").read_text() == "mine"


def test_a_label_map_that_was_corrected_by_hand_is_no_longer_its_own(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run() == 0
    corrected = Path("found/square.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(corrected)
    before, other = corrected.read_bytes(), Path("found/tiny.png").stat().st_mtime_ns
    assert _run("--overwrite") == 0
    assert "segment: 1 label maps were corrected by hand and are kept (square.png)" in capsys.readouterr().out
    assert corrected.read_bytes() == before
    assert Path("found/tiny.png").stat().st_mtime_ns > other


def test_a_file_of_others_with_the_name_of_the_manifest_is_kept(ready: Any) -> None:
    Path("found").mkdir()
    Path("found/segment.json").write_text('{"mine": 1}')
    assert "(segment.json); choose another folder" in ready.fault(segment.main, SEGMENT)
    assert Path("found/segment.json").read_text() == '{"mine": 1}'


def _stop_after(monkeypatch: pytest.MonkeyPatch, count: int, end: type[BaseException]) -> None:
    """Let a run end when so many images are done."""
    add, added = run_manifest.RunManifest.add, []

    def add_and_stop(manifest: Any, name: str, *rest: Any) -> None:
        if len(added) == count:
            raise end
        added.append(name)
        add(manifest, name, *rest)

    monkeypatch.setattr(run_manifest.RunManifest, "add", add_and_stop)


def _kill(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A run that a kill ends when so many images are done: nothing is saved on the way out."""
    save, saved = run_manifest.RunManifest.save, []

    def save_once(manifest: Any) -> None:
        if not saved:
            saved.append(manifest)
            save(manifest)

    with monkeypatch.context() as inner:
        _stop_after(inner, count, MemoryError)
        inner.setattr(run_manifest.RunManifest, "save", save_once)
        with pytest.raises(MemoryError):
            segment.main(SEGMENT)


def test_a_label_map_that_was_corrected_after_a_stop_is_kept(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as inner:
        _stop_after(inner, 1, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            segment.main(SEGMENT)
    corrected = Image.open("found/square.png").point(lambda one: 0)
    corrected.save("found/square.png")
    before = Path("found/square.png").read_bytes()
    assert _run() == 0
    assert Path("found/square.png").read_bytes() == before


def test_a_label_map_that_was_corrected_after_a_kill_is_kept(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill(monkeypatch, 1)
    Image.open("found/square.png").point(lambda one: 0).save("found/square.png")
    before = Path("found/square.png").read_bytes()
    with Path("found/segment.jsonl").open("a") as journal:
        journal.write('{"file": "tin')  # cut off by the kill
    assert _run() == 0
    assert "segment: 1 images are done already" in capsys.readouterr().out
    assert Path("found/square.png").read_bytes() == before
    assert not Path("found/segment.jsonl").exists()
    assert len(json.loads(Path("found/segment.json").read_text())["images"]) == 3


def test_a_file_that_another_program_made_where_a_stopped_run_had_not_been_is_kept(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _kill(monkeypatch, 0)
    Path("found/trip").mkdir()
    Path("found/trip/wide.png").write_text("hand-made")
    message = ready.fault(segment.main, SEGMENT)
    assert message.startswith("found: has 1 files that segment would replace but has not written")
    assert Path("found/trip/wide.png").read_text() == "hand-made"


def test_a_mask_that_was_made_for_a_damaged_image_is_kept(ready: Any) -> None:
    Path("photos/notes.png").write_text("shopping list")
    assert _run() == 1
    Path("found/notes.png").write_text("hand-made")
    write_image(Path("photos/notes.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    assert "(notes.png)" in ready.fault(segment.main, SEGMENT)
    assert Path("found/notes.png").read_text() == "hand-made"


def test_after_a_kill_the_run_goes_on(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the kill comes between the files of an image and the note that it is done."""
    add, added = run_manifest.RunManifest.add, []

    def add_and_stop(manifest: Any, name: str, *rest: Any) -> None:
        if added:
            raise KeyboardInterrupt
        added.append(name)
        add(manifest, name, *rest)
        manifest.save()

    with monkeypatch.context() as inner:
        inner.setattr(run_manifest.RunManifest, "add", add_and_stop)
        with pytest.raises(KeyboardInterrupt):
            segment.main(SEGMENT)
    assert sorted(path.name for path in Path("found").rglob("*.png")) == ["square.png", "tiny.png"]
    first = Path("found/square.png").stat().st_mtime_ns
    capsys.readouterr()
    assert _run() == 0
    assert "segment: 1 images are done already" in capsys.readouterr().out
    assert Path("found/square.png").stat().st_mtime_ns == first
    assert len(pd.read_csv("found/manifest.csv")) == 3


def test_remarks_and_the_range_are_said(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save("photos/deep.png")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save("photos/cut.png")
    assert _run() == 0
    said = capsys.readouterr().out
    assert "segment: images with 16 bits per channel use 12 of them: 0 to 4,095 becomes 0 to 255" in said
    assert "segment: files with transparent pixels, which are laid over white: 1 (cut.png)" in said


def test_what_is_not_there_is_said(ready: Any) -> None:
    ends = "; pass images, folders of images, or patterns such as 'photos/**/*.jpg'"
    assert ready.fault(segment.main, ["photos", "typo", "photos/*.gif", *FLAGS]) == (
        f"typo: no such file or folder{ends}\nphotos/*.gif: matches no file{ends}"
    )


def test_flags_are_named_in_messages(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert ready.fault(segment.main, [*SEGMENT, "--device", "cuda"]).startswith("--device: 'cuda' needs a")
    for flags in (["--device", "gpu"], ["--format", "coco,masks"]):
        with pytest.raises(SystemExit):
            segment.main([*SEGMENT, *flags])
    assert "'masks' is none of coco, labelstudio, cvat" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        segment.main([*SEGMENT, "--params", "params.yaml"])
    assert "--params has the settings of --refine; pass --refine as well" in capsys.readouterr().err
    assert not Path("found").exists()


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
    assert "label maps of 3 images" in said
    assert "left out 2: hidden, or made by the system (" in said
    assert (
        "left out 1: label map among the images, by its name or that of its folder (square_mask.png)" in said
    )
    assert "left out 1: link to nothing (gone.png)" in said


def test_an_overlay_that_is_too_wide_for_its_format_is_shrunk(ready: Any) -> None:
    write_image(Path("photos/scan.png"), np.zeros((2, 65_600, 3), dtype=np.uint8))
    assert _run() == 0
    assert Image.open("found/scan.png").size == (65_600, 2)
    assert Image.open("found/scan_overlay.jpg").size[0] == 65_500


@pytest.mark.parametrize("band", [1, 1000, 1 << 24])
def test_bands_are_what_the_whole_image_is(ready: Any, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Argmax and softmax of upsampled scores, computed without holding clusters times pixels."""
    monkeypatch.setattr(trained_model, "BAND_ELEMENTS", band)
    picture = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    found = segment.load(".", device="cpu")(picture)
    full = _scores(ready, picture, (32, 40))  # multiples of the stride of the context grid
    assert (found.ids == full.argmax(1)[0].numpy()).mean() > 0.99
    likely = torch.softmax(full / 0.1, dim=1).amax(1)[0].numpy()
    np.testing.assert_allclose(found.confidence, likely, atol=1e-3)


def _scores(ready: Any, picture: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Cosine of each pixel to each centroid, at full size."""
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    centroids = ready.tensors("pixel_centroids.safetensors")[0]["centroids"]
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    small = F.interpolate(image, size, mode="bilinear", antialias=True)
    with torch.no_grad():
        scores = torch.einsum("ndhw,kd->nkhw", F.normalize(segmenter(small)), centroids)
    return F.interpolate(scores, picture.shape[:2], mode="bilinear", align_corners=False)


def _place_in_project(ready: Any) -> None:
    """Move the model to the folder models/ of the project, beside params.yaml."""
    Path("models").mkdir()
    for name in ("segmenter.safetensors", "pixel_centroids.safetensors"):
        shutil.move(name, "models")


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("unit_features", [False, True])
def test_features_are_those_of_predict(
    ready: Any, mirror: bool, unit_features: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that label maps are those that were scored; the demo has neither of STEGO's choices."""
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    centroids = ready.tensors("pixel_centroids.safetensors")[0]["centroids"]
    _place_in_project(ready)
    ready.params(predict__mirror=mirror, predict__unit_features=unit_features)
    picture = np.asarray(Image.open("photos/square.png"))
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        feature = segmenter(image)
        if mirror:
            feature = (feature + segmenter(image.flip(3)).flip(3)) / 2
    feature = F.normalize(feature) if unit_features else feature / feature.norm(dim=1).mean()
    full = F.interpolate(torch.einsum("ndhw,kd->nkhw", feature, centroids), (32, 32), mode="bilinear")
    assert _run("--model", "models") == 0
    ids = np.asarray(Image.open("found/square.png"))
    assert (ids == full.argmax(1)[0].numpy()).mean() > 0.99
    likely = torch.softmax(full / 0.1, dim=1).amax(1).mean()
    row = pd.read_csv("found/manifest.csv").set_index("source").loc["square.png"]
    assert row["confidence"] == pytest.approx(float(likely), abs=1e-3)
    said = f"segment: predict.mirror: {mirror}, predict.unit_features: {unit_features}, as "
    assert (said.lower() in capsys.readouterr().out.lower()) == (mirror or not unit_features)


def test_other_features_replace_files_only_when_asked(ready: Any) -> None:
    _place_in_project(ready)
    assert _run("--model", "models") == 0
    manifest = json.loads(Path("found/segment.json").read_text())
    del manifest["made_by"][run_manifest.FEATURES]  # as an earlier version has written it
    Path("found/segment.json").write_text(json.dumps(manifest))
    assert _run("--model", "models") == 0
    ready.params(predict__mirror=True)
    assert "a run with another choice of predict.mirror and predict.unit_features (" in ready.fault(
        segment.main, [*SEGMENT, "--model", "models"]
    )
    assert _run("--model", "models", "--overwrite") == 0
    Path("params.yaml").unlink()
    assert "another choice of predict.mirror" in ready.fault(segment.main, [*SEGMENT, "--model", "models"])


def test_settings_that_have_nothing_to_do_with_it_may_be_of_another_version(ready: Any) -> None:
    _place_in_project(ready)
    Path("params.yaml").write_text("gone: true\npredict: {batch_size: 3}\n")
    assert _run("--model", "models") == 0


def test_merged_clusters_are_one_id_and_their_confidence_is_summed(ready: Any) -> None:
    Path("names.yaml").write_text(NAMES)
    picture = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    found = segment.load(".", device="cpu", names=Path("names.yaml"))(picture)
    full = _scores(ready, picture, (32, 40))
    best = full.argmax(1)[0].numpy()
    assert found.names == ("sky", "road", "sky")
    assert (found.ids == np.array([0, 1, 0])[best]).mean() > 0.99
    likely = torch.softmax(full / 0.1, dim=1)[0].numpy()
    summed = np.where(found.ids == 0, likely[0] + likely[2], likely[1])
    np.testing.assert_allclose(found.confidence, summed, atol=1e-3)


def test_paths_may_be_text_in_python(ready: Any) -> None:
    Path("names.yaml").write_text(NAMES)
    model = segment.load(".", device="cpu", names="names.yaml", refine="params.yaml")
    assert model.legend.names == ("sky", "road", "sky")
    assert model.named_by == "names.yaml"
    assert model.crf == ready.read("refine").refine


def test_legend_and_table_have_names_colors_and_shares(ready: Any) -> None:
    Path("names.yaml").write_text(NAMES)
    assert _run("--names", "names.yaml", "--scores") == 0
    rows = json.loads(Path("found/legend.json").read_text())["clusters"]
    assert [(row["name"], row["merged_into"]) for row in rows] == [("sky", 0), ("road", 1), ("sky", 0)]
    assert rows[1]["color"] == "#102030"
    table = pd.read_csv("found/manifest.csv")
    ids = np.asarray(Image.open("found/trip/wide.png"))
    row = table.set_index("source").loc["trip/wide.jpg"]
    assert list(table)[5:] == ["share of sky", "share of road"]
    assert (row["mask"], row["width"], row["height"]) == ("trip/wide.png", 90, 50)
    assert row["share of sky"] == pytest.approx((ids == 0).mean(), abs=1e-5)
    gray = Image.open("found/trip/wide_confidence.png")
    assert (gray.mode, gray.size) == ("L", (90, 50))
    assert np.asarray(gray).mean() / 255 == pytest.approx(row["confidence"], abs=2e-3)


def test_names_come_from_the_report_of_the_same_clusters(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ready.folder.parent / "metrics/report/legend.json"
    legend = plain_legend(3, Names({1: "road"}))
    assert _run() == 0
    assert f"segment: names of clusters: numbers: there is no {path}" in capsys.readouterr().out
    for clusters, said in (("other", f"numbers: {path} is of other clusters"), ("own", str(path))):
        own = lineage(Path("pixel_centroids.safetensors")).own
        write_cluster_legend(path, legend, own if clusters == "own" else "other")
        assert _run("--overwrite") == 0
        assert f"segment: names of clusters: {said}\n" in capsys.readouterr().out
    assert json.loads(Path("found/legend.json").read_text())["clusters"][1]["name"] == "road"
    Path("names.yaml").write_text("clusters: 'other'\nnames: {0: sky}")
    assert "names clusters other" in ready.fault(segment.main, [*SEGMENT, "--names", "names.yaml"])


def test_refined_labels_are_the_marginals_of_the_crf(ready: Any) -> None:
    """At the working size the tool does what stage `refine` does."""
    assert _run("--refine", "--params", "params.yaml", "--scores") == 0
    picture = np.asarray(Image.open("photos/square.png"))
    unary = torch.softmax(_scores(ready, picture, (32, 32)) / 0.1, dim=1)[0].numpy()
    marginals = mean_field(picture, unary, ready.read("refine").refine)
    ids = np.asarray(Image.open("found/square.png"))
    assert (ids == marginals.argmax(0)).mean() > 0.99
    assert ready.fault(segment.main, [*SEGMENT, "--refine", "--params", "typo.yaml"]) == (
        "typo.yaml: not found; --refine takes its settings from there: pass --params FILE"
    )


def test_a_crf_for_gpus_is_refused_where_there_is_none(ready: Any) -> None:
    ready.params(refine__backend="fused")
    assert ready.fault(segment.main, [*SEGMENT, "--refine", "--params", "params.yaml"]) == (
        "params.yaml: refine.backend: 'fused' needs a CUDA GPU, but the device is cpu; "
        "set refine.backend: auto or cpu, or install the GPU driver"
    )


def test_files_folders_and_patterns_keep_their_paths_below_the_common_folder(ready: Any) -> None:
    for name in ("one/a.png", "two/a.png", "two/deep/b.png", "c.png"):
        write_image(Path("more") / name, np.zeros((9, 9, 3), dtype=np.uint8))
    segment.main(["more/one", "more/two/*.png", "more/two/deep/b.png", "more/one/a.png", *FLAGS])
    sources = pd.read_csv("found/manifest.csv")["source"].tolist()
    assert sources == ["one/a.png", "two/a.png", "two/deep/b.png"]
    assert all(Path("found", name).exists() for name in sources)
    assert ready.fault(segment.main, ["more/c.png", *FLAGS, "--out", "more"]).startswith("--out more: is the")


def test_another_folder_never_replaces_label_maps_of_the_same_names(ready: Any) -> None:
    for folder in ("one", "two"):
        write_image(Path(folder, "a.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    segment.main(["one", *FLAGS])
    assert "another folder of photographs" in ready.fault(segment.main, ["two", *FLAGS])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_exif_orientation_is_applied_and_said(
    ready: Any, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(f"photos/turned.{suffix}", exif=exif)
    assert _run() == 0
    assert Image.open("found/turned.png").size == (20, 30)
    said = "segment: images turned as their EXIF orientation says, with label maps as displayed: 1 ("
    assert said in capsys.readouterr().out


def test_what_is_no_image_is_refused_in_python(ready: Any) -> None:
    model = segment.load(".", device="cpu")
    for picture in (
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"expected RGB uint8 \[H, W, 3\], got"):
            model(picture)


def test_a_batch_is_what_its_images_are_one_by_one(ready: Any) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(3)]
    model = segment.load(".", device="cpu")
    for picture, found in zip(pictures, model.segment(pictures), strict=True):
        assert (model(picture).ids == found.ids).mean() > 0.999


def test_sixteen_bits_are_brought_to_eight_and_not_cut_off(ready: Any) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 256).save("photos/deep.png")
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save("photos/plain.png")
    segment.main(SEGMENT)
    assert (np.array(Image.open("found/deep.png")) == np.array(Image.open("found/plain.png"))).all()


@pytest.mark.parametrize(
    ("trained", "largest", "bits", "said"),
    [
        (12, 900, 12, "0 to 4,095 becomes 0 to 255, as /"),
        (
            12,
            9000,
            14,
            "use 14 of them: 0 to 16,383 becomes 0 to 255\n",
        ),
        (None, 900, 10, "use 10 of them: 0 to 1,023 becomes 0 to 255"),
    ],
)
def test_sixteen_bits_are_scaled_as_in_training(
    ready: Any,
    capsys: pytest.CaptureFixture[str],
    trained: int | None,
    largest: int,
    bits: int,
    said: str,
) -> None:
    """A few dim images by themselves would else be brighter than they were among those of training."""
    for name in ("segmenter.safetensors", "pixel_centroids.safetensors"):
        Path("models").mkdir(exist_ok=True)
        shutil.copy(name, "models")
    known = {} if trained is None else {"bits_per_channel": trained}
    write_metrics(Path("metrics/prepare.json"), {"prepare": {"train_images": 1, **known}})
    deep = np.linspace(0, largest, 40 * 60).astype(np.uint16).reshape(40, 60)
    Image.fromarray(deep).save("photos/deep.png")
    plain = (deep >> (bits - 8)).astype(np.uint8)
    Image.fromarray(np.repeat(plain[..., None], 3, axis=2)).save("photos/plain.png")
    segment.main([*SEGMENT, "--model", "models"])
    assert (np.array(Image.open("found/deep.png")) == np.array(Image.open("found/plain.png"))).all()
    shown = capsys.readouterr()
    assert said in shown.out
    assert ("images use 14 bits of 16, and those of training 12" in shown.err) == (
        trained == 12 and bits == 14
    )


def test_photographs_read_in_python_are_those_that_segment_sees(ready: Any) -> None:
    """12 of 16 bits, gray with transparency, and turned by EXIF: as `segment` masks them."""
    write_metrics(Path("metrics/prepare.json"), {"prepare": {"bits_per_channel": 12}})
    Path("models").mkdir()
    for name in ("segmenter.safetensors", "pixel_centroids.safetensors"):
        shutil.copy(name, "models")
    shutil.rmtree("photos")
    Path("photos").mkdir()
    deep = np.linspace(0, 4095, 40 * 60).astype(np.uint16).reshape(40, 60)
    Image.fromarray(deep).save("photos/deep.png")
    shades = Image.fromarray((deep >> 4).astype(np.uint8))
    Image.merge("LA", (shades, shades)).save("photos/transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    shades.save("photos/turned.png", exif=exif)
    segment.main([*SEGMENT, "--model", "models"])
    model = segment.load()
    for name, size in (("deep", (40, 60)), ("transparent", (40, 60)), ("turned", (60, 40))):
        picture = segment.read_photograph(f"photos/{name}.png")
        assert (picture.dtype, picture.shape) == (np.uint8, (*size, 3))
        assert (np.array(Image.open(f"found/{name}.png")) == model(picture).ids).all()
    assert (segment.read_photograph("photos/deep.png")[..., 0] == deep >> 4).all()
    assert (segment.read_photograph("photos/deep.png", "elsewhere/models")[..., 0] == deep >> 4).all()
    Image.fromarray(deep // 32).save("photos/dim.png")
    assert (segment.read_photograph("photos/dim.png")[..., 0] == deep // 32 >> 4).all()
    assert segment.read_photograph("photos/dim.png", "elsewhere/models").max() == 127
    assert (
        segment.read_photograph("photos/dim.png", "elsewhere/models", 12)[..., 0] == deep // 32 >> 4
    ).all()
    for name in ("gone.jpg", "metrics/prepare.json"):
        with pytest.raises(UserError, match=rf"^{name}: "):
            segment.read_photograph(name)


def test_other_bits_of_deep_images_leave_all_others_as_they_are(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run() == 0
    for name, largest, done in (("deep", 4000, 3), ("deeper", 16_000, 3), ("like it", 15_000, 5)):
        values = np.linspace(0, largest, 64 * 3).astype(np.uint16).reshape(8, 24)
        Image.fromarray(values).save(f"photos/{name}.png")
        before = _modified()
        capsys.readouterr()
        assert _run() == 0
        assert f"segment: {done} images are done already" in capsys.readouterr().out
        same = {path for path, time in _modified().items() if before.get(path) == time}
        assert len(same) == done


def test_colors_of_sixteen_bits_are_done_again_with_other_bits(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pillow opens them as it does those of eight."""
    Path("photos/colors.png").write_bytes(png16(np.full((8, 8, 3), 4000)))
    assert _run() == 0
    assert json.loads(Path("found/segment.json").read_text())["images"]["colors.png"]["bits"] == 12
    Image.fromarray(np.full((8, 8), 9000, np.uint16)).save("photos/deeper.png")
    capsys.readouterr()
    assert _run() == 0
    assert "segment: 3 images are done already" in capsys.readouterr().out


def _modified() -> dict[Path, int]:
    """Time of each label map."""
    maps = (path for path in Path("found").rglob("*.png") if "_" not in path.name)
    return {path: path.stat().st_mtime_ns for path in maps}


def test_memory_of_a_gpu_that_runs_out_is_named(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def crowded(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trained_model.TrainedModel, "segment", crowded)
    assert ready.fault(segment.main, SEGMENT) == (
        "the memory of the GPU ran out (CUDA out of memory); pass --device cpu, or end other programs that "
        "use the GPU; what is done is not done again"
    )


def test_of_two_images_of_one_name_one_is_left_out(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(Path("photos/square.jpg"), np.zeros((8, 8, 3), dtype=np.uint8))
    assert _run() == 1
    said = capsys.readouterr().err
    assert "left out 1: same name as another image but for the suffix (square.png)" in said


def test_names_that_cannot_be_written_down_are_left_out(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"photos/caf\xe9.png", b"photos/bell\x07.png"):
        os.link("photos/square.png", name)
    assert _run("--format", "cvat") == 1
    said = capsys.readouterr().err
    assert "left out 2: name with control characters or not UTF-8; rename it ('bell\\x07.png', " in said
    assert len(pd.read_csv("found/manifest.csv")) == 3


def test_names_that_are_too_long_for_outputs_are_left_out_and_all_others_done(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    longest, longer, long = ("ö" * 121 + "a.png", "ö" * 122 + ".png", "ö" * 120 + ".png")
    for name in (longest, longer, long):
        os.link("photos/square.png", f"photos/{name}")
    assert _run("--format", "coco") == 1
    said = capsys.readouterr().err
    assert f"left out 1: name too long for those of its outputs; shorten it ({longer})\n" in said
    assert Path(f"found/{'ö' * 121}a_overlay.jpg").exists()
    assert len(pd.read_csv("found/manifest.csv")) == 5
    assert _run("--scores") == 1
    assert (
        f"left out 2: name too long for those of its outputs; shorten it ({longest}, "
        in capsys.readouterr().err
    )
    assert Path(f"found/{'ö' * 120}_confidence.png").exists()
    assert len(pd.read_csv("found/manifest.csv")) == 5, "what is done stays"


def test_no_image_replaces_the_map_of_confidence_of_another(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(Path("photos/square_confidence.jpg"), np.zeros((9, 9, 3), dtype=np.uint8))
    assert _run() == 0
    assert _run("--scores") == 1
    said = capsys.readouterr().err
    assert (
        "would have the names of files or folders of another image; rename it (square_confidence.jpg)" in said
    )
    assert Image.open("found/square_confidence.png").size == (32, 32)
    assert len(pd.read_csv("found/manifest.csv")) == 3


def test_a_photograph_that_is_edited_meanwhile_is_done_again(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, edited = pipeline.write_outputs, []

    def edit_and_write(*rest: Any) -> None:
        if not edited:
            edited.append(write_image(Path("photos/square.png"), np.zeros((9, 9, 3), dtype=np.uint8)))
            Path("photos/tiny.bmp").rename("tiny.bmp")
        write(*rest)

    with monkeypatch.context() as inner:
        inner.setattr(pipeline, "write_outputs", edit_and_write)
        assert _run() == 0
    Path("tiny.bmp").rename("photos/tiny.bmp")
    assert _run() == 0
    assert Image.open("found/square.png").size == (9, 9)


GROW = r"""
import re, sys
from pathlib import Path
from stages.tools import segment

def peak():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

flags = ["--device", "cpu", "--model", ".", "--quiet", *sys.argv[1:]]
segment.main(["small.png", "--out", "first", *flags])
before = peak()
segment.main(["large.png", "--out", "second", *flags])
print(peak() - before)
"""


@pytest.mark.parametrize("refine", [[], ["--refine", "--params", "params.yaml"]], ids=["raw", "refined"])
def test_memory_grows_by_some_bytes_a_pixel_whatever_the_clusters(bench: Any, refine: list[str]) -> None:
    """Of a process of its own. Scores of 27 clusters at full size would be 108 bytes a pixel."""
    bench.write_segmenter()
    bench.write_centroids(num_clusters=27)
    for name, height, width in (("small", 1000, 1500), ("large", 3000, 4000)):
        write_image(Path(f"{name}.png"), np.full((height, width, 3), 90, np.uint8))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", GROW, *refine]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert Image.open("second/large.png").size == (4000, 3000)
    assert int(ended.stdout) / (3000 * 4000) < 20
