"""Label maps in the formats of other programs, read back by their own libraries or by their specification."""

import json
import weakref
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from stages.tools import segment
from stages.tools.segmenting import formats, label_studio
from stages.tools.segmenting.label_studio import encode_brush
from tests.datasets import write_image

NAMES = "names: {0: sky & sea, 2: sky & sea}"
FLAGS = ["--out", "found", "--device", "cpu", "--model", ".", "--names", "names.yaml"]
SOURCES = ["one/wide.jpg", "two words/tall.png"]


@pytest.fixture
def ready(bench: Any) -> Any:
    bench.write_segmenter()
    bench.write_centroids()
    Path("names.yaml").write_text(NAMES)
    rng = np.random.default_rng(0)
    for name, height, width in ((SOURCES[0], 50, 90), (SOURCES[1], 41, 33)):
        write_image(Path("photos") / name, rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return bench


def _ids(source: str) -> np.ndarray:
    return np.asarray(Image.open(Path("found", source).with_suffix(".png")))


def test_coco_is_read_back_by_pycocotools(ready: Any) -> None:
    segment.main(["photos", "--format", "coco", *FLAGS])
    found = COCO("found/coco.json")
    assert [found.cats[one]["name"] for one in found.getCatIds()] == ["sky & sea", "cluster 1"]
    assert [one["file_name"] for one in found.loadImgs(found.getImgIds())] == SOURCES
    for image in found.loadImgs(found.getImgIds()):
        ids = _ids(image["file_name"])
        assert ids.shape == (image["height"], image["width"])
        again = np.full(ids.shape, 255)
        for annotation in found.loadAnns(found.getAnnIds(imgIds=image["id"])):
            inside = found.annToMask(annotation).astype(bool)
            assert annotation["area"] == inside.sum()
            rows, columns = np.nonzero(inside)
            left, top, width, height = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
            again[inside] = annotation["category_id"] - 1
        np.testing.assert_array_equal(again, ids)
    found.showAnns([])
    assert coco_mask.area(found.annToRLE(found.anns[1])) == found.anns[1]["area"]


def _decode_brush(code: bytes) -> np.ndarray:
    """By the JavaScript of thi.ng's rle-pack that Label Studio's converter quotes."""
    bits, place = "".join(f"{byte:08b}" for byte in code), 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < total:
        is_run = read(1)
        length = read(sizes[read(2)]) + 1
        out += [read(word)] * length if is_run else [read(word) for _ in range(length)]
    return np.array(out, np.uint8)


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_a_brush_mask_is_decoded_by_the_specification(mask: np.ndarray) -> None:
    found = _decode_brush(encode_brush(mask)).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(found, np.repeat(mask[..., None], 4, axis=2) * 255)


def test_a_long_run_of_a_brush_mask_is_cut_into_parts() -> None:
    mask = np.ones((300, 301), bool)
    assert _decode_brush(encode_brush(mask)).tolist() == [255] * mask.size * 4


def test_label_studio_gets_predictions_and_its_interface(ready: Any) -> None:
    segment.main(["photos", "--format", "labelstudio", *FLAGS])
    tasks = json.loads(Path("found/label_studio.json").read_text())
    view = ElementTree.parse("found/label_studio.xml").getroot()
    (brush,) = view.iter("BrushLabels")
    (shown,) = view.iter("Image")
    labels = [label.get("value") for label in brush]
    assert labels == ["sky & sea", "cluster 1"]
    rows = pd.read_csv("found/manifest.csv")
    assert len(tasks) == 2
    for task, source, confidence in zip(tasks, SOURCES, rows["confidence"], strict=True):
        address = "/data/local-files/?d=photos/" + source.replace(" ", "%20")
        assert task["data"] == {(shown.get("value") or "").removeprefix("$"): address}
        (prediction,) = task["predictions"]
        assert prediction["score"] == pytest.approx(confidence, abs=1e-5)
        ids = _ids(source)
        again = np.full(ids.shape, 255)
        for region in prediction["result"]:
            assert (region["from_name"], region["to_name"]) == (brush.get("name"), shown.get("name"))
            assert region["type"] == "brushlabels"
            assert (region["original_height"], region["original_width"]) == ids.shape
            value = region["value"]
            assert value["format"] == "rle"
            mask = _decode_brush(bytes(value["rle"])).reshape(*ids.shape, 4)[..., 3] == 255
            again[mask] = {"sky & sea": 0, "cluster 1": 1}[value["brushlabels"][0]]
        np.testing.assert_array_equal(again, ids)
        assert len({region["id"] for region in prediction["result"]}) == len(prediction["result"])


def _tasks() -> list[list[str]]:
    """The images of each file of tasks, in the order of the files."""
    paths = sorted(Path("found").glob("label_studio*.json"))
    return [[task["data"]["image"] for task in json.loads(path.read_text())] for path in paths]


def test_tasks_are_split_into_files_that_label_studio_takes(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(Path("photos/z.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    segment.main(["photos", "--format", "labelstudio", *FLAGS])
    ((first, *others),) = _tasks()
    whole = Path("found/label_studio.json").stat().st_size
    monkeypatch.setattr(label_studio, "LARGEST_BYTES", whole)
    segment.main(["photos", *FLAGS])
    assert _tasks() == [[first, *others]]
    for largest, parts in (
        (whole - 1, [[first, others[0]], [others[1]]]),
        (9, [[one] for one in (first, *others)]),
    ):
        monkeypatch.setattr(label_studio, "LARGEST_BYTES", largest)
        capsys.readouterr()
        segment.main(["photos", *FLAGS])
        assert _tasks() == parts
        assert all(
            largest == 9 or path.stat().st_size <= largest for path in Path("found").glob("label_*.json")
        )
        names = ["label_studio.json", "label_studio.xml", "label_studio_002.json", "label_studio_003.json"]
        assert f", {', '.join(names[: 1 + len(parts)])}\n" in capsys.readouterr().out
    monkeypatch.setattr(label_studio, "LARGEST_BYTES", whole)
    segment.main(["photos", *FLAGS])
    assert _tasks() == [[first, *others]], "those of the earlier run are deleted"
    assert "label_studio_00" not in Path("found/segment.json").read_text()


def test_a_part_of_an_earlier_run_that_was_changed_stays_and_is_named(
    ready: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as inner:
        inner.setattr(label_studio, "LARGEST_BYTES", 9)
        segment.main(["photos", "--format", "labelstudio", *FLAGS])
    Path("found/label_studio_002.json").write_text("mine")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        segment.main(["photos", "--format", "labelstudio", "--quiet", *FLAGS])
    assert capsys.readouterr().err == (
        "segment: warning: label_studio_002.json: part of an earlier run, changed since segment has written "
        "it, and left as it is; move it away, so that it is not taken for one of this run\n"
    )
    assert Path("found/label_studio_002.json").read_text() == "mine"
    assert len(json.loads(Path("found/label_studio.json").read_text())) == 2


def test_a_file_of_others_with_the_name_of_a_part_is_in_the_way(ready: Any) -> None:
    Path("found").mkdir()
    Path("found/label_studio_002.json").write_text("mine")
    message = ready.fault(segment.main, ["photos", "--format", "labelstudio", *FLAGS])
    assert message.startswith(
        "found: has 1 files that segment would replace but has not written (label_studio_0"
    )
    segment.main(["photos", *FLAGS])
    assert Path("found/label_studio_002.json").read_text() == "mine"


def test_cvat_gets_masks_by_its_specification(ready: Any) -> None:
    segment.main(["photos", "--format", "cvat", *FLAGS])
    root = ElementTree.parse("found/cvat.xml").getroot()
    assert (root.tag, root.findtext("version")) == ("annotations", "1.1")
    names = [label.findtext("name") for label in root.findall("meta/task/labels/label")]
    given = json.loads(Path("found/cvat_labels.json").read_text())
    assert names == [label["name"] for label in given] == ["sky & sea", "cluster 1"]
    images = root.findall("image")
    assert [image.get("name") for image in images] == SOURCES
    for image in images:
        ids = _ids(str(image.get("name")))
        assert [image.get("height"), image.get("width")] == [str(side) for side in ids.shape]
        again = np.full(ids.shape, 255)
        for element in image.findall("mask"):
            left, top, width, height = (
                int(element.attrib[key]) for key in ("left", "top", "width", "height")
            )
            pixels: list[bool] = []
            for number, length in enumerate(element.attrib["rle"].split(",")):
                pixels += [number % 2 == 1] * int(length)
            box = np.array(pixels).reshape(height, width)
            assert box.any(0).all() or box.any(1).any()
            again[top : top + height, left : left + width][box] = names.index(element.attrib["label"])
        np.testing.assert_array_equal(again, ids)


def test_several_formats_at_once_and_later_without_a_new_segmentation(ready: Any) -> None:
    segment.main(["photos", *FLAGS])
    before = Path("found/one/wide.png").stat().st_mtime_ns
    segment.main(["photos", "--format", "coco,coco", "--format", "cvat", *FLAGS])
    assert {"coco.json", "cvat.xml"} <= {path.name for path in Path("found").iterdir()}
    assert Path("found/one/wide.png").stat().st_mtime_ns == before


def test_a_label_map_is_decoded_once_for_all_formats(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one after another, so that memory does not grow with their number."""
    segment.main(["photos", *FLAGS])
    read, decoded = formats.read_ids, []

    def count(path: Path, *rest: Any) -> Any:
        alive = [one for one in decoded if one() is not None]
        assert len(alive) <= 1, "the last one"
        return read(path, *rest)

    def keep(*given: Any) -> Any:
        ids = merge(*given)
        decoded.append(weakref.ref(ids))
        return ids

    merge = formats.merge
    monkeypatch.setattr(formats, "read_ids", count)
    monkeypatch.setattr(formats, "merge", keep)
    write_image(Path("photos/z.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    segment.main(["photos", "--format", "coco,labelstudio,cvat", *FLAGS])
    assert len(decoded) == 3


def test_a_corrected_label_map_is_kept_and_taken_into_later_formats(
    ready: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    segment.main(["photos", *FLAGS])
    ids = _ids(SOURCES[0]).copy()
    ids[:10], ids[10:] = 1, 0
    Image.fromarray(ids).save("found/one/wide.png")
    before = Path("found/one/wide.png").read_bytes()
    capsys.readouterr()
    segment.main(["photos", "--format", "coco", *FLAGS])
    said = capsys.readouterr().out
    assert "segment: 1 label maps were corrected by hand and are kept (one/wide.png)" in said
    assert Path("found/one/wide.png").read_bytes() == before
    found = COCO("found/coco.json")
    assert {one["category_id"]: one["area"] for one in found.imgToAnns[1]} == {1: 40 * 90, 2: 10 * 90}
    row = pd.read_csv("found/manifest.csv").set_index("source").loc[SOURCES[0]]
    assert row["share of cluster 1"] == pytest.approx(0.2)
    Image.fromarray(ids[1:]).save("found/one/wide.png")
    message = ready.fault(segment.main, ["photos", *FLAGS])
    assert message.startswith("found/one/wide.png: is a label map of mode L and 90 x 49 px; expected")


def test_files_for_all_images_keep_all_and_are_renewed(ready: Any) -> None:
    """By a run on part of the photographs, and by one without `--format`."""
    segment.main(["photos", "--format", "coco", *FLAGS])
    write_image(Path("photos/more.png"), np.zeros((9, 9, 3), dtype=np.uint8))
    segment.main(["photos/more.png", "photos/one/wide.jpg", *FLAGS])
    expected = [SOURCES[0], SOURCES[1], "more.png"]
    assert sorted(pd.read_csv("found/manifest.csv")["source"]) == sorted(expected)
    found = COCO("found/coco.json")
    assert sorted(one["file_name"] for one in found.loadImgs(found.getImgIds())) == sorted(expected)


def test_without_pycocotools_the_message_says_what_to_install(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    message = ready.fault(segment.main, ["photos", "--format", "coco", *FLAGS])
    assert message.startswith("--format coco: needs pycocotools; install it with pip install")
    assert not Path("found").exists()
