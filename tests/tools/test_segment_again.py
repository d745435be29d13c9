"""`segment` into a folder that has outputs already: other runs at the same time, and corrected label maps."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stages.reporting.lineage import lineage
from stages.settings.errors import UserError
from stages.tools import segment
from stages.tools.segmenting import pipeline
from tests.datasets import write_image

FLAGS = ["--out", "found", "--device", "cpu", "--model", "."]
SEGMENT = ["photos", *FLAGS]
NAMED = ["--names", "names.yaml", "--overwrite"]


@pytest.fixture
def ready(bench: Any) -> Any:
    bench.write_segmenter()
    bench.write_centroids()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "trip/c.bmp"):
        write_image(Path("photos") / name, rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    return bench


def _exit_code(argv: list[str]) -> int:
    try:
        segment.main(argv)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# Two runs at the same time


def test_a_second_run_into_the_same_folder_is_refused_and_the_first_loses_nothing(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, said = pipeline.write_outputs, []

    def write_and_start_another(*rest: Any) -> None:
        if not said:
            with pytest.raises(UserError) as fault:
                segment.main(["photos/b.jpg", *FLAGS, "--overwrite"])
            said.append(str(fault.value))
        write(*rest)

    with monkeypatch.context() as inner:
        inner.setattr(pipeline, "write_outputs", write_and_start_another)
        segment.main(SEGMENT)
    assert said == [
        "found: another run of segment writes there (lock: found/.segment.lock); wait for it to end, or "
        "choose another folder with --out"
    ]
    assert pd.read_csv("found/manifest.csv")["source"].tolist() == ["a.png", "b.jpg", "trip/c.bmp"]
    segment.main(SEGMENT)


@pytest.mark.parametrize("given", [["ph/**/*.jpg"], ["ph/**/*.*"]])
def test_outputs_that_match_a_pattern_move_no_folder(ready: Any, given: list[str]) -> None:
    """The first run names its files by the photographs alone, so the second finds them done."""
    for name in ("a", "b"):
        write_image(Path(f"ph/sub/{name}.jpg"), np.zeros((24, 32, 3), np.uint8))
    command = [*given, "--out", "ph/out", "--device", "cpu", "--model", "."]
    segment.main(command)
    Path("ph/notes.txt").touch()
    before = {path: path.stat().st_mtime_ns for path in Path("ph/out").glob("*.png")}
    assert sorted(path.name for path in before) == ["a.png", "b.png"]
    segment.main(command)
    assert {path: path.stat().st_mtime_ns for path in Path("ph/out").glob("*.png")} == before


@pytest.mark.parametrize("has_shell", [True, False])
def test_an_output_folder_among_what_matches_is_left_out(
    ready: Any, has_shell: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_image(Path(f"ph/{name}.jpg"), np.zeros((24, 32, 3), np.uint8))
    for number in range(2):
        given = sorted(map(str, Path("ph").iterdir())) if has_shell else ["ph/*"]
        assert len(given) == (1 if not has_shell else 2 + number)
        segment.main([*given, "--out", "ph/out", "--device", "cpu", "--model", "."])
    said = capsys.readouterr().out
    assert "segment: 2 images are done already" in said
    assert "segment: left out 1: written by segment (out/)" in said
    with pytest.raises(UserError, match="is the folder of the images"):
        segment.main(["ph/out", "--out", "ph/out", "--device", "cpu", "--model", "."])


def test_label_maps_beside_photographs_that_are_given_twice_are_left_out(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abcd":
        write_image(Path(f"ph/{name}.jpg"), np.zeros((24, 32, 3), np.uint8))
        write_image(Path(f"ph/labels/{name}.png"), np.zeros((24, 32), np.uint8))
    segment.main(["ph/**/*.*", *(f"ph/{name}.jpg" for name in "abcd"), *FLAGS])
    assert "left out 4: label map among the images" in capsys.readouterr().out
    assert pd.read_csv("found/manifest.csv")["source"].tolist() == [f"{name}.jpg" for name in "abcd"]


def test_an_empty_output_folder_among_what_is_given_is_left_out(ready: Any) -> None:
    write_image(Path("ph/a.jpg"), np.zeros((24, 32, 3), np.uint8))
    Path("ph/out").mkdir()
    segment.main(["ph/a.jpg", "ph/out", "--out", "ph/out", "--device", "cpu", "--model", "."])
    assert pd.read_csv("ph/out/manifest.csv")["source"].tolist() == ["a.jpg"]


def test_a_map_that_would_have_the_name_of_a_folder_of_maps_is_not_made(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "a.png/x.png", "b.png/c.jpg", "b.jpg"):
        write_image(Path("ph") / name, np.zeros((24, 32, 3), np.uint8))
    with pytest.raises(SystemExit):
        segment.main(["ph", "--out", "found", "--device", "cpu", "--model", "."])
    assert (
        "left out 2: its outputs would have the names of files or folders of another"
        in capsys.readouterr().err
    )
    assert sorted(path.as_posix() for path in Path("found").rglob("*.png") if path.is_file()) == [
        "found/a.png",
        "found/b.png",
    ]


def test_files_are_in_the_journal_before_they_are_in_their_places(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the journal is on the disk, so a loss of power leaves no file of unknown origin."""
    synced: list[str] = []
    replace, fsync = os.replace, os.fsync

    def sync(handle: int) -> None:
        fsync(handle)
        synced[:] = [Path("found/segment.jsonl").read_text()] if Path("found/segment.jsonl").exists() else []

    def move(source: Any, target: Any) -> None:
        if (
            not any(part.startswith(".segment.") for part in Path(target).parts)
            and Path(target).suffix != ".json"
        ):
            assert f'"file": "{Path(target).relative_to("found").as_posix()}"' in synced[0]
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    segment.main(SEGMENT)
    assert len(list(Path("found").rglob("*.png"))) == 3


def test_the_lock_leaves_nothing_behind_and_a_left_one_is_no_file_of_others(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    segment.main(SEGMENT)
    assert not Path("found/.segment.lock").exists()
    Path("found/.segment.lock").touch()  # of a run that was killed
    segment.main([*SEGMENT, "--overwrite"])
    Path("photos/.segment.lock").touch()
    capsys.readouterr()
    segment.main(SEGMENT)
    said = capsys.readouterr().out
    assert "segment: 3 images are done already" in said
    assert "left out 1: hidden, or made by the system (.segment.lock)" in said


def test_a_lock_that_another_run_removes_at_its_end_is_none(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run ends after this one has opened the file and before it locks it."""
    lock, locked = fcntl.flock, []

    def remove_and_lock(file: Any, operation: int) -> None:
        if not locked:
            Path(file.name).unlink()
        lock(file, operation)
        locked.append(Path(file.name).exists())

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    segment.main(SEGMENT)
    assert locked == [False, True]


def test_unfinished_files_of_a_run_that_was_killed_are_removed(ready: Any) -> None:
    unfinished = "found/.segment.2x_4abcd/trip/.c.png.abcdefgh"
    for name in ("found/.segment.notes/a.png", "found/.git/a", "elsewhere/a.png", unfinished):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("found/.segment.json.abcdefgh").touch()
    Path("found/.segment.elsewher").symlink_to("../elsewhere")
    segment.main(SEGMENT)
    hidden = sorted(path.name for path in Path("found").iterdir() if path.name.startswith("."))
    assert hidden == [".git", ".segment.elsewher", ".segment.notes"]
    assert Path("elsewhere/a.png").exists()


def test_a_run_that_is_refused_removes_nothing_of_the_one_that_goes_on(ready: Any) -> None:
    Path("found/.segment.2x_4abcd").mkdir(parents=True)
    with Path("found/.segment.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run of segment writes there"):
            segment.main(SEGMENT)
    assert Path("found/.segment.2x_4abcd").exists()


def test_a_disk_without_locks_is_warned_of_and_used(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    segment.main(SEGMENT)
    assert (
        "segment: warning: found/.segment.lock: its disk has no locks (No locks available), so runs do not "
        "notice each other; start one at a time\n"
    ) in capsys.readouterr().err
    assert Path("found/a.png").exists()
    assert not Path("found/.segment.lock").exists()


# Label maps that were corrected by hand


def _correct(name: str = "found/a.png", number: int = 2) -> bytes:
    """Paint a label map: the upper half of it is cluster 0, the lower one another."""
    ids = np.zeros((24, 32), np.uint8)
    ids[12:] = number
    Image.fromarray(ids).save(name)
    return Path(name).read_bytes()


def _photograph(name: str) -> None:
    write_image(Path("photos") / name, np.random.default_rng(5).integers(0, 256, (9, 9, 3), dtype=np.uint8))


def _add_beside_a_touched_one() -> None:
    _photograph("more.png")
    os.utime("photos/a.png", ns=(5, 5))


TOUCHED = "changed since segment has written it, and left as it is"
KEPT = "segment: 1 label maps were corrected by hand and are kept"
CHANGES: dict[str, tuple[Callable[[], object], list[str], str]] = {
    "scores": (lambda: None, ["--scores"], ""),
    "no overlay": (lambda: Path("found/a_overlay.jpg").unlink(), [], ""),
    "another photograph": (
        lambda: _photograph("a.png"),
        [],
        ", though their photographs have changed since",
    ),
    "a new one": (_add_beside_a_touched_one, [], ", though their photographs have changed since"),
    "overwrite": (lambda: None, ["--overwrite", "--scores"], ""),
    "other names": (lambda: Path("names.yaml").write_text("names: {1: road}"), NAMED, ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_corrected_label_map_is_kept_and_all_others_are_done(
    ready: Any, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    segment.main(SEGMENT)
    before, (make, more, said) = _correct(), CHANGES[change]
    make()
    _photograph("b.jpg")
    for _ in range(2):
        capsys.readouterr()
        segment.main([*SEGMENT, *more])
        assert f"{KEPT}{said} (a.png)\n" in capsys.readouterr().out
    assert Path("found/a.png").read_bytes() == before
    assert Image.open("found/b.png").size == (9, 9)
    assert Path("found/b_confidence.png").exists() == ("--scores" in more)
    assert not Path("found/a_confidence.png").exists()
    row = pd.read_csv("found/manifest.csv").set_index("source").loc["a.png"]
    assert (row.iloc[4], row.iloc[6], row["width"]) == (0.5, 0.5, 32)


def _other_model(ready: Any, about: dict[str, Any]) -> None:
    save_file({"centroids": torch.randn(3, 8)}, "pixel_centroids.safetensors", {"about": json.dumps(about)})
    ready.claim_centroids()


def _sources() -> list[str]:
    """The images of the table, and those of another format."""
    table = pd.read_csv("found/manifest.csv")["source"].tolist()
    assert [one.get("name") for one in ElementTree.parse("found/cvat.xml").iter("image")] == table
    return table


@pytest.mark.parametrize("void", [[], [1], [2]])
def test_ids_of_another_model_are_in_no_table_unless_its_clusters_are_continued(
    ready: Any, void: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    segment.main(SEGMENT)
    clusters = lineage(Path("pixel_centroids.safetensors"))
    before, first = _correct(), Path("pixel_centroids.safetensors").read_bytes()
    _other_model(ready, {})
    again = [*SEGMENT, "--overwrite", "--format", "cvat"]
    for argv in (again, SEGMENT):  # as long as the folder is of that model
        capsys.readouterr()
        segment.main(argv)
        said = capsys.readouterr().out
        assert f"{KEPT}, but have the ids of other clusters, and are left out of manifest.csv and" in said
        assert _sources() == ["b.jpg", "trip/c.bmp"]
    _other_model(ready, {"continues": [clusters.own, *clusters.earlier], "void": {clusters.own: void}})
    segment.main(again)
    is_valid = 2 not in void
    assert ("a.png" in _sources()) == is_valid
    assert (f"{KEPT} (a.png)" in capsys.readouterr().out) == is_valid
    Path("pixel_centroids.safetensors").write_bytes(first)
    segment.main(again)
    assert "a.png" in _sources()
    assert Path("found/a.png").read_bytes() == before
    Path("found/a.png").unlink()
    segment.main(SEGMENT)
    assert "a.png" in _sources()
    assert '"clusters": ""' in Path("found/segment.json").read_text()


def test_a_corrected_map_of_another_photograph_of_that_name_is_not_of_this_one(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    segment.main(SEGMENT)
    before = _correct()
    shutil.copytree("photos", "moved")  # with the times of the files
    segment.main(["moved", *FLAGS, "--overwrite"])
    assert f"{KEPT} (a.png)" in capsys.readouterr().out
    write_image(Path("others/a.png"), np.zeros((7, 7, 3), dtype=np.uint8))
    write_image(Path("others/d.png"), np.zeros((7, 7, 3), dtype=np.uint8))
    for more in (["--overwrite"], []):
        segment.main(["others", *FLAGS, *more])
        said = capsys.readouterr().out
        assert f"{KEPT}, but may be of other photographs than those given, which have no row in" in said
        assert pd.read_csv("found/manifest.csv")["source"].tolist() == ["d.png"]
    assert Path("found/a.png").read_bytes() == before
    Path("found/a.png").unlink()
    segment.main(["others", *FLAGS])
    assert pd.read_csv("found/manifest.csv")["source"].tolist() == ["a.png", "d.png"]


def test_ids_that_later_names_merge_count_for_the_cluster_that_stands_for_them(ready: Any) -> None:
    segment.main(SEGMENT)
    before = _correct()
    Path("names.yaml").write_text("names: {1: sky, 2: sky}")
    segment.main([*SEGMENT, *NAMED, "--format", "cvat"])
    row = pd.read_csv("found/manifest.csv").set_index("source").loc["a.png"]
    assert row["share of sky"] == 0.5
    image = next(ElementTree.parse("found/cvat.xml").iter("image"))
    assert [(mask.get("label"), mask.get("rle")) for mask in image] == [
        ("cluster 0", "0, 384"),
        ("sky", "0, 384"),
    ]
    assert Path("found/a.png").read_bytes() == before


def test_other_files_that_were_changed_are_left_as_they_are(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a table that a spreadsheet has stored; then it is out of date, which the exit code says."""
    segment.main(SEGMENT)
    for name in ("a_overlay.jpg", "manifest.csv"):
        Path("found", name).write_text("mine")
    _photograph("a.png")
    capsys.readouterr()
    assert _exit_code(SEGMENT) == 1
    said = capsys.readouterr()
    assert f"segment: warning: manifest.csv: {TOUCHED}; move it away to have it written\n" in said.err
    assert f"left out 1: {TOUCHED} (a_overlay.jpg)" in said.out
    assert "label maps of 3 images, and legend.json, left_out.csv\n" in said.out
    assert Image.open("found/a.png").size == (9, 9)
    assert Path("found/a_overlay.jpg").read_text() == Path("found/manifest.csv").read_text() == "mine"
    assert _exit_code([*SEGMENT, "--quiet", "--skip-broken"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"segment: warning: manifest.csv: {TOUCHED}; move it away to have it written\n"
    Path("found/manifest.csv").unlink()
    assert _exit_code(SEGMENT) == 0
    assert len(pd.read_csv("found/manifest.csv")) == 3


def test_a_format_that_was_changed_is_warned_of_and_an_error_if_it_is_asked_for(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    segment.main([*SEGMENT, "--format", "cvat"])
    Path("found/cvat.xml").write_text("mine")
    capsys.readouterr()
    assert _exit_code([*SEGMENT, "--quiet"]) == 0
    assert capsys.readouterr().err == (
        f"segment: warning: cvat.xml: {TOUCHED}, so no file of format cvat is renewed (cvat.xml, "
        "cvat_labels.json); to have them written, move it away and pass --format cvat\n"
    )
    for path in ("found/manifest.csv", "found/cvat_labels.json"):
        Path(path).unlink()
    assert _exit_code([*SEGMENT, "--quiet", "--format", "cvat"]) == 1
    assert capsys.readouterr().err == (
        f"segment: warning: cvat.xml: {TOUCHED}; move it away to have it written\n"
    )
    assert Path("found/cvat.xml").read_text() == "mine"
    assert Path("found/manifest.csv").exists(), "all else is written"
    assert Path("found/cvat_labels.json").exists()


# What is segment's own, and what is of earlier runs


def test_a_copied_folder_is_still_its_own(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    segment.main([*SEGMENT, "--format", "cvat"])
    _correct()
    journal = Path("found/segment.jsonl")  # as a run that was killed leaves it
    Path("found/b.png").write_bytes(Path("found/trip/c.png").read_bytes())
    state, sha256 = Path("found/b.png").stat(), hashlib.sha256(Path("found/b.png").read_bytes()).hexdigest()
    journal.write_text(
        json.dumps({"file": "b.png", "modified_ns": state.st_mtime_ns, "sha256": sha256}) + "\n"
    )
    shutil.copytree("found", "copied", copy_function=shutil.copy)  # with other times
    os.utime("copied/trip/c.png", ns=(5, 5))
    for more in ([], ["--overwrite", "--scores"]):
        capsys.readouterr()
        segment.main(["photos", "--out", "copied", *FLAGS[2:], *more])
        said = capsys.readouterr().out
        assert f"{KEPT} (a.png)\n" in said
        assert "changed since" not in said
        assert said.endswith(
            "label maps of 3 images, and legend.json, manifest.csv, cvat.xml, cvat_labels.json\n"
        )
    assert Path("copied/b_confidence.png").exists()
    assert Path("copied/trip/c.png").stat().st_mtime_ns > 5


def test_other_names_of_the_same_clusters_need_no_image_again(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    segment.main(SEGMENT)
    before = Path("found/a.png").stat().st_mtime_ns
    Path("names.yaml").write_text("names: {1: road}")
    segment.main([*SEGMENT, "--names", "names.yaml"])
    assert "3 images are done already" in capsys.readouterr().out
    assert Path("found/a.png").stat().st_mtime_ns == before
    assert "share of road" in pd.read_csv("found/manifest.csv").columns
    assert '"road"' in Path("found/legend.json").read_text()


def _repaint(palette: list[int], ids: np.ndarray) -> None:
    """Store a corrected label map as a program does that builds a palette of its own."""
    image = Image.fromarray(ids, mode="P")
    image.putpalette(palette)
    image.save("found/a.png")


def _shares() -> list[float]:
    """Of the three clusters in the corrected label map."""
    table = pd.read_csv("found/manifest.csv").set_index("source")
    return table.loc["a.png"].iloc[4:].tolist()


def test_a_palette_that_was_numbered_anew_is_read_by_its_colors(ready: Any) -> None:
    segment.main(SEGMENT)
    with Image.open("found/a.png") as written:
        colours = np.array(written.getpalette()).reshape(-1, 3)
    ids = np.zeros((24, 32), np.uint8)
    ids[18:] = 1
    _repaint(colours[[2, 0]].flatten().tolist(), ids)
    segment.main([*SEGMENT, "--format", "cvat"])
    assert _shares() == [0.25, 0.0, 0.75]
    image = next(ElementTree.parse("found/cvat.xml").iter("image"))
    assert [(mask.get("label"), mask.get("rle")) for mask in image] == [
        ("cluster 0", "0, 192"),
        ("cluster 2", "0, 576"),
    ]
    _repaint([1, 2, 3, *colours[0].tolist()], ids)
    assert ready.fault(segment.main, SEGMENT) == (
        "found/a.png: has other colors than it was written with, and among them one of no cluster or of "
        "several (#010203); save it with its own palette or as a gray PNG of ids, or delete it"
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_corrected_map_that_was_saved_in_rgb_is_read_by_its_colors(ready: Any, mode: str) -> None:
    segment.main(SEGMENT)
    ids = np.zeros((24, 32), np.uint8)
    ids[18:] = 2
    with Image.open("found/a.png") as written:
        palette = written.getpalette() or []
    _repaint(palette, ids)
    with Image.open("found/a.png") as painted:
        painted.convert(mode).save("found/a.png")
    segment.main(SEGMENT)
    assert _shares() == [0.75, 0.0, 0.25]


def test_all_label_maps_that_cannot_be_read_are_named_at_once(ready: Any) -> None:
    segment.main(SEGMENT)
    smooth = np.arange(24 * 32 * 3, dtype=np.uint32).reshape(24, 32, 3).astype(np.uint8)
    smooth[..., 1] = np.arange(24)[:, None]
    Image.fromarray(smooth).save("found/a.png")
    Image.new("RGBA", (32, 24)).save("found/b.png")
    first, second = ready.fault(segment.main, SEGMENT).splitlines()
    assert first.startswith("found/a.png: has 768 colors, more than there are clusters; edges were smoothed")
    assert second.startswith("found/b.png: is a label map of mode RGBA and 32 x 24 px; expected cluster ids")


def test_gray_levels_of_the_colors_are_not_taken_for_ids(ready: Any) -> None:
    """Some programs store a palette image in gray; its levels are ids of no cluster, and would drop out."""
    segment.main([*SEGMENT, "--format", "cvat"])
    for name in ("a", "b"):
        with Image.open(f"found/{name}.png") as written:
            written.convert("L").save(f"found/{name}.png")
    first, second = ready.fault(segment.main, SEGMENT).splitlines()
    assert first.startswith("found/a.png: no pixel has an id of a cluster, 0 to 2, but ")
    assert first.endswith("has stored gray levels in place of ids: save the palette or RGB, or delete it")
    assert second.startswith("found/b.png: no pixel has an id of a cluster")


def test_ids_of_no_cluster_are_warned_of_with_their_share(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    segment.main(SEGMENT)
    ids = np.zeros((24, 32), np.uint8)
    ids[:3], ids[3:9] = 7, 255
    Image.fromarray(ids).save("found/a.png")
    capsys.readouterr()
    segment.main([*SEGMENT, "--quiet"])
    assert capsys.readouterr().err == (
        "segment: warning: 1 corrected label maps have pixels with ids of no cluster, which are in no share "
        "and no format; 255 is for pixels to be ignored (a.png: 12.5 %, with 7)\n"
    )
    assert _shares() == [0.625, 0.0, 0.0]
    Image.fromarray(np.full_like(ids, 255)).save("found/a.png")
    segment.main([*SEGMENT, "--quiet"])
    assert capsys.readouterr().err == "", "all of it is to be ignored"
    assert _shares() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("names", "is_clear"), [("sky", True), ("road", False)])
def test_a_color_of_several_clusters_is_clear_if_they_are_merged(
    ready: Any, names: str, is_clear: bool
) -> None:
    grey = '"#102030"'
    Path("names.yaml").write_text(
        f"names: {{0: {{name: sky, color: {grey}}}, 2: {{name: {names}, color: {grey}}}}}"
    )
    segment.main([*SEGMENT, *NAMED])
    ids = np.zeros((24, 32), np.uint8)
    _repaint([0x10, 0x20, 0x30], ids)
    segment.main([*SEGMENT, *NAMED])
    assert _shares()[0] == 1.0
    with Image.open("found/b.png") as written:
        other = written.getpalette()[3:6]
    ids[18:] = 1
    _repaint([*other, 0x10, 0x20, 0x30], ids)
    if is_clear:
        segment.main([*SEGMENT, *NAMED])
        assert _shares() == [0.25, 0.75]
    else:
        assert "one of no cluster or of several (#102030)" in ready.fault(segment.main, [*SEGMENT, *NAMED])


def test_a_corrected_map_keeps_its_ids_when_names_give_its_clusters_other_colors(ready: Any) -> None:
    segment.main(SEGMENT)
    with Image.open("found/a.png") as written:
        colours = written.getpalette() or []
    ids = np.zeros((24, 32), np.uint8)
    ids[18:] = 1
    _repaint(colours, ids)
    swapped = [f'"#{bytes(colours[3 * one : 3 * one + 3]).hex()}"' for one in (1, 0)]
    Path("names.yaml").write_text(
        f"names: {{0: {{name: sky, color: {swapped[0]}}}, 1: {{name: road, color: {swapped[1]}}}}}"
    )
    for more in (NAMED, NAMED[:2]):
        segment.main([*SEGMENT, *more])
        assert _shares() == [0.75, 0.25, 0.0]


def test_outputs_of_photographs_that_are_gone_stay_and_are_named(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    segment.main(SEGMENT)
    Path("photos/b.jpg").unlink()
    for more in ([], ["--overwrite"]):
        capsys.readouterr()
        segment.main([*SEGMENT, *more])
        assert (
            "segment: 2 files of earlier runs stay, whose photographs this run does not have; they are not "
            "in manifest.csv (b.png, b_overlay.jpg)\n"
        ) in capsys.readouterr().out
        assert pd.read_csv("found/manifest.csv")["source"].tolist() == ["a.png", "trip/c.bmp"]
    segment.main(["photos/a.png", *FLAGS])
    assert "(b.png, b_overlay.jpg)" in capsys.readouterr().out, "c.bmp is not given, but there"


def test_label_maps_of_a_data_set_are_no_photographs(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    maps = ["labels/val/x.png", "gt/day/y.png", "gt/z.png"]
    for name in ("images/val/x.jpg", "images/train/y.jpg", *maps):
        write_image(Path("set") / name, np.zeros((9, 9, 3), dtype=np.uint8))
    segment.main(["set", *FLAGS])
    assert pd.read_csv("found/manifest.csv")["source"].tolist() == ["images/train/y.jpg", "images/val/x.jpg"]
    assert "by its name or that of its folder (gt/day/y.png, gt/z.png, labels/val/" in capsys.readouterr().out
    segment.main(["set/images", "set/labels", *FLAGS, "--overwrite"])
    assert len(pd.read_csv("found/manifest.csv")) == 2, "folders that a pattern gives are seen together"
    segment.main(["set/images", "set/gt/z.png", *FLAGS, "--overwrite"])
    assert "gt/z.png" in pd.read_csv("found/manifest.csv")["source"].tolist(), "it was asked for"


@pytest.mark.parametrize("pattern", ["set/**/*.png", "set/*/*/*.png"])
def test_what_a_pattern_matches_is_taken_as_files_of_a_folder_are(ready: Any, pattern: str) -> None:
    images = ("images/val/x.png", "images/train/y.jpg")
    maps = ("images/val/x_mask.png", "labels/val/x.png", "labels/val/y.png")
    for name in (*images, *maps, "images/@eaDir/x.png"):
        write_image(Path("set") / name, np.zeros((9, 9, 3), dtype=np.uint8))
    segment.main([pattern, *FLAGS])
    assert pd.read_csv("found/manifest.csv")["source"].tolist() == ["images/val/x.png"]
    left_out = pd.read_csv("found/left_out.csv").set_index("file")["reason"]
    assert sorted(left_out.index) == sorted((*maps, "images/@eaDir/x.png")), "and nothing that is not matched"
    assert left_out["images/@eaDir/x.png"] == "hidden, or made by the system"
    assert set(left_out[list(maps)]) == {"label map among the images, by its name or that of its folder"}
    segment.main([pattern, "set/labels/val/y.png", "set/images/@eaDir/x.png", *FLAGS])
    sources = ["images/@eaDir/x.png", "images/val/x.png", "labels/val/y.png"]
    assert pd.read_csv("found/manifest.csv")["source"].tolist() == sources, "they were asked for"
    assert sorted(pd.read_csv("found/left_out.csv")["file"]) == sorted(maps[:2])


def test_a_pattern_that_matches_label_maps_alone_has_no_photographs(ready: Any) -> None:
    for name in ("images/x.jpg", "labels/x.png"):
        write_image(Path("set") / name, np.zeros((9, 9, 3), dtype=np.uint8))
    assert "left out 1: label map among the images" in ready.fault(segment.main, ["set/**/*.png", *FLAGS])
    segment.main(["set/labels/*.png", *FLAGS])  # the folder is given by its own name
    assert pd.read_csv("found/manifest.csv")["source"].tolist() == ["x.png"]


def test_a_folder_of_the_system_that_a_pattern_matches_is_left_out(ready: Any) -> None:
    write_image(Path("set/@eaDir/x.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    message = ready.fault(segment.main, ["set/*", *FLAGS])
    assert "left out 1: hidden, or made by the system (@eaDir/)" in message
    write_image(Path("set/a/x.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    segment.main(["set/*", *FLAGS])
    assert pd.read_csv("found/manifest.csv")["source"].tolist() == ["x.png"]
    assert pd.read_csv("found/left_out.csv")["file"].tolist() == ["set/@eaDir/"]
