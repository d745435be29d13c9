"""`report` through its command line, on a handful of flat images."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stages import report
from stages.core.artefacts import write_metrics
from stages.core.tensors import write_tensors
from stages.dataset.truth import write_classes
from stages.settings.errors import UserError

TRAIN, VAL, SIZE, K = 6, 3, 16, 4
PARAMS = Path(__file__).parents[2] / "params.yaml"
NAMES = ("<b>&", "grass")
FIGURES = {"accuracy": 0.61234, "miou": 0.4, "class_accuracy": None, "classes_counted": 2}
FREE = {"clusters_used": 3, "effective_clusters": 2.5, "largest_cluster_share": 0.5, "image_share": 0.25}
READINGS = {
    "score": ["all · overall", "things · truth_alone", "stuff · averaged · many_to_one"],
    "matching": ["one_to_one", "one_to_one", "many_to_one"],
    "classes": ["all", "things", "stuff"],
    "reading": ["overall", "truth_alone", "averaged"],
    "accuracy": [0.61234, 0.5, 0.25],
    "miou": [0.4, "", 0.125],
    "classes_counted": [2, 0, 1],
}
SIDE = {"min": 10, "median": 20, "max": 30}
DATA = {
    "train_images": TRAIN,
    "val_images": VAL,
    "class_shares": {NAMES[0]: 0.25, NAMES[1]: 0.75},
    "ignored_share": 0.125,
    "sizes_px": {
        "train": {"width": SIDE, "height": SIDE},
        "val": {"width": SIDE, "height": dict.fromkeys(SIDE, 9)},
    },
    "notes": ["a <note>"],
    "left_out": {"no <label> map": {"files": 7, "examples": ["a<b>.png"]}},
    "warnings": ["255 is <no> class"],
}
INPUTS = {
    "images": "images",
    "truth": "truth",
    "data": "prepare.json",
    "labels": "labels.safetensors",
    "views": "kept_views.npy",
    "predictions": "predictions.npy",
    "refined": "refined.npy",
    "pretrain-history": "pretrain.csv",
    "train-history": "train.csv",
    "raw": "raw.json",
    "refined-scores": "refined.json",
    "raw-readings": "raw_readings.csv",
    "refined-readings": "refined_readings.csv",
    "per-class": "classes.csv",
    "out": "report",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All that the report reads; class 0 is cluster 3, class 1 cluster 1, clusters 0 and 2 are nobody's."""
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        np.save(folder / "images.npy", random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8))
        index = {"id": range(count), "source": [f"<i>{n}.png" for n in range(count)]}
        index |= {"width": SIZE, "height": SIZE, "sha256": "0" * 64}
        pd.DataFrame(index).to_csv(folder / "index.csv", index=False)
    (tmp_path / "truth").mkdir()
    np.save(tmp_path / "truth/val.npy", random.choice([0, 1, 255], (VAL, SIZE, SIZE)).astype(np.uint8))
    write_classes(tmp_path / "truth", NAMES)
    kept = random.integers(-1, 3, (TRAIN, 6)).astype(np.int32)
    np.save(tmp_path / "kept_views.npy", kept)
    tensors = {"score": torch.rand(TRAIN, 6, generator=torch.Generator().manual_seed(0))}
    write_tensors(tmp_path / "labels.safetensors", tensors, {})
    np.save(tmp_path / "predictions.npy", random.random((VAL, K, 8, 8)).astype(np.float16))
    np.save(tmp_path / "refined.npy", random.integers(0, K, (VAL, SIZE, SIZE), dtype=np.uint8))
    pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.5], "note": ["a", "b"]}).to_csv(
        tmp_path / "train.csv", index=False
    )
    (tmp_path / "pretrain.csv").write_text("epoch,loss\n")
    write_metrics(tmp_path / "prepare.json", {"prepare": DATA})
    raw = {"raw": FIGURES | FREE, "colour_position": FIGURES | FREE, "truth": {"image_share": 0.125}}
    write_metrics(tmp_path / "raw.json", raw, {"raw": ["accuracy", "miou"]})
    write_metrics(tmp_path / "refined.json", {"refined": FIGURES | FREE})
    for name in ("raw", "refined"):
        pd.DataFrame(READINGS).to_csv(tmp_path / f"{name}_readings.csv", index=False)
    classes = {"class": NAMES, "cluster": [3, 1], "iou": ["", 0.25], "accuracy": ["", 0.5], "pixels": [0, 9]}
    pd.DataFrame(classes).to_csv(tmp_path / "classes.csv", index=False)
    return tmp_path


def _run(folder: Path) -> str:
    argv = [part for name, path in INPUTS.items() for part in (f"--{name}", str(folder / path))]
    report.main([*argv, "--params", str(PARAMS)])
    return (folder / "report/index.html").read_text()


def test_the_page_is_whole_and_needs_nothing_from_outside(folder: Path) -> None:
    page = _run(folder)
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert {"segmentation.png", "train.png"} < set(pictures)
    written = {path.name for path in (folder / "report").iterdir()}
    assert written == {*pictures, "index.html", "panels.png"}
    assert "http" not in page
    assert "<script" not in page
    assert all(
        Image.open(folder / "report" / name).info == {} for name in pictures if not name.startswith("train")
    )


def test_an_input_that_changes_while_it_runs(folder: Path, change_at_end: Any) -> None:
    before = _run(folder)
    change_at_end(lambda: (folder / "raw.json").write_text("{}"))
    with pytest.raises(UserError) as raised:
        _run(folder)
    assert str(raised.value) == (
        f"report: changed while it ran: {folder}/raw.json; its result would belong to neither the old nor "
        "the new, so nothing is written; run `dvc repro` again"
    )
    assert (folder / "report/index.html").read_text() == before


def test_all_that_it_reads_is_watched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[Path] = []
    monkeypatch.setattr(report.Watch, "check", lambda watch: watched.extend(watch.inputs))
    _run(folder)
    assert sorted(watched) == sorted(folder / path for name, path in INPUTS.items() if name != "out")


def test_tags_are_balanced(folder: Path) -> None:
    class Balance(HTMLParser):
        open: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Balance()
    parser.feed(_run(folder))
    assert parser.open == []


def test_names_of_classes_and_files_are_escaped(folder: Path) -> None:
    page = _run(folder)
    assert "<b>" not in page
    assert "<i>" not in page
    assert page.count("&lt;b&gt;&amp;") == 4  # legend, class bars, cluster bars, data
    assert "&lt;i&gt;0.png, &lt;i&gt;1.png, &lt;i&gt;2.png" in page


def test_scores_are_shown_in_per_cent_and_nulls_as_a_dash(folder: Path) -> None:
    rows = re.findall(r'<tr class="(\w*)"><td>(.*?)</td>(.*?)</tr>', _run(folder))
    assert [(kind, name) for kind, name, _ in rows] == [
        ("first", "prediction"),
        ("", "prediction + CRF"),
        ("baseline", "k-means on colour and position"),
        ("", "truth"),
    ]
    dashes = ["\N{EN DASH}"] * 6
    assert re.findall("<td>(.*?)</td>", rows[3][2]) == [*dashes, "12.5"]
    assert re.findall("<td>(.*?)</td>", rows[0][2]) == [
        "61.2",
        "40.0",
        "\N{EN DASH}",
        "3",
        "2.5",
        "50.0",
        "25.0",
    ]


def test_what_was_read_is_shown(folder: Path) -> None:
    page = _run(folder)
    assert "<td>to learn from</td><td>6</td><td>20 (10 to 30)</td><td>20 (10 to 30)</td>" in page
    assert "<td>to look at</td><td>3</td><td>20 (10 to 30)</td><td>9</td>" in page
    assert "&lt;b&gt;&amp; 25.0, grass 75.0." in page
    assert "12.5 per cent of all pixels are ignored." in page
    assert "Left out: 7, no &lt;label&gt; map (a&lt;b&gt;.png)." in page
    assert "<strong>Check the data:</strong> 255 is &lt;no&gt; class." in page
    assert "a &lt;note&gt;." in page


def test_readings_are_shown(folder: Path) -> None:
    page = _run(folder)
    rows = re.findall(r'<tr><td>(\w+)</td><td class="word">(.*?)</td>(.*?)</tr>', page)
    cells = [(classes, reading, re.findall("<td>(.*?)</td>", rest)) for classes, reading, rest in rows]
    dash = "\N{EN DASH}"
    assert cells == [
        ("all", "overall", ["61.2", "40.0", "61.2", "40.0", "2"]),
        ("things", "truth alone", ["50.0", dash, "50.0", dash, "0"]),
        ("stuff", "averaged, many to one", ["25.0", "12.5", "25.0", "12.5", "1"]),
    ]


def test_readings_of_another_run_are_refused(folder: Path) -> None:
    pd.DataFrame(READINGS)[:2].to_csv(folder / "refined_readings.csv", index=False)
    with pytest.raises(UserError, match="rows of raw and refined differ; run `dvc repro evaluate`"):
        _run(folder)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title></main><iframe src=javascript:alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; &amp;amp;",
    "<!-- gone -->",
    "]]><svg/onload=alert(1)>",
    "\u202egnp.exe",
    "$x^2$ \\frac",
]


class _Parts(HTMLParser):
    """What a browser would make of a page: the kinds of tags, the names of attributes, the text."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts |= {tag, *(f"{tag} {name}" for name, _ in attrs)}

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.parts.add("comment")


def _parts(page: str) -> _Parts:
    parser = _Parts()
    parser.feed(page)
    return parser


def test_hostile_names_of_classes_and_files_are_text_and_nothing_else(folder: Path) -> None:
    harmless = _parts(_run(folder))
    for names in (HOSTILE[:5], HOSTILE[5:]):
        write_classes(folder / "truth", tuple(names[:2]))
        for table, column in (("classes.csv", "class"), ("images/val/index.csv", "source")):
            content = pd.read_csv(folder / table, keep_default_na=False)
            content[column] = names[:2] if column == "class" else names[2:]
            content.to_csv(folder / table, index=False)
        found = _parts(_run(folder))
        assert found.parts == harmless.parts
        assert [found.text.count(name) for name in names] == [3, 3, 1, 1, 1]  # legend, both bars; file names


def test_bytes_are_the_same_again(folder: Path) -> None:
    _run(folder)
    first = {path.name: path.read_bytes() for path in (folder / "report").iterdir()}
    _run(folder)
    assert {path.name: path.read_bytes() for path in (folder / "report").iterdir()} == first
    assert not any(b"Software" in content for content in first.values())


def test_without_truth_it_says_so_and_shows_no_truth(folder: Path) -> None:
    write_classes(folder / "truth", ())
    np.save(folder / "truth/val.npy", np.full((VAL, SIZE, SIZE), 255, np.uint8))
    (folder / "classes.csv").write_text("class,cluster,iou,accuracy,pixels\n")
    for name, key in (("raw", "raw"), ("refined", "refined")):
        pd.DataFrame(READINGS)[:0].to_csv(folder / f"{name}_readings.csv", index=False)
        write_metrics(folder / f"{name}.json", {key: FREE})
    with_truth = 4
    page = _run(folder)
    assert "has no labels" in page
    assert "mean IoU" not in page
    assert "Things and stuff" not in page
    assert "<h2>Classes</h2>" not in page
    assert Image.open(folder / "report/panels.png").height < with_truth * 112


def test_a_cluster_wears_the_colour_of_its_class(folder: Path) -> None:
    np.save(folder / "refined.npy", np.full((VAL, SIZE, SIZE), 3, np.uint8))
    np.save(folder / "truth/val.npy", np.zeros((VAL, SIZE, SIZE), np.uint8))
    _run(folder)
    picture = np.asarray(Image.open(folder / "report/segmentation.png").convert("RGB"))
    truth, refined = picture[134 + 64, 92 + 64], picture[3 * 134 + 64, 92 + 64]
    np.testing.assert_array_equal(truth, refined)


def test_everything_that_does_not_fit_is_told_at_once(folder: Path) -> None:
    np.save(folder / "refined.npy", np.full((VAL, 4, 4), K, np.uint8))
    np.save(folder / "kept_views.npy", np.zeros((5, 6), np.int32))
    with pytest.raises(UserError) as raised:
        _run(folder)
    assert raised.value.faults == (
        f"{folder / 'refined.npy'}: has shape [3, 4, 4], but the images require [3, 16, 16]; run `dvc repro`",
        f"{folder / 'kept_views.npy'}: has shape [5, 6], but the images require [6, 6]; run `dvc repro`",
        f"{folder / 'refined.npy'}: has cluster id 4, but there are 4 clusters; run `dvc repro refine`",
    )
    assert not (folder / "report").exists()


def test_a_table_of_other_classes_is_refused(folder: Path) -> None:
    write_classes(folder / "truth", ("sky", "grass"))
    with pytest.raises(UserError, match="has other classes than the ground truth"):
        _run(folder)
