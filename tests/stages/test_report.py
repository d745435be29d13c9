"""`report` through its command line, on a handful of flat images."""

import json
import re
from base64 import b64decode
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
from stages.reporting.lineage import lineage
from stages.settings.errors import UserError
from stages.settings.schema import Params
from tests.report_inputs import (
    CONFUSION,
    FREE,
    INPUTS,
    READINGS,
    SIZE,
    VAL,
    K,
    run_report,
    write_report_inputs,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All that the report reads."""
    write_report_inputs(tmp_path)
    return tmp_path


def _cells(row: str) -> list[str]:
    return re.findall("<td[^>]*>(.*?)</td>", row)


def test_the_page_is_whole_and_needs_nothing_from_outside(folder: Path) -> None:
    page = run_report(folder)
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert {"image_00000.webp", "image_00002_truth.png", "region_003_0.webp", "view_0000_0.webp"} < set(
        pictures
    )
    written = {path.name for path in (folder / "report").iterdir()}
    assert written == {*pictures, "index.html", "legend.json", "panels.png"}
    assert "http" not in page
    assert "src=" not in re.sub(r'<img src="[^"]+"', "", page)
    described = {key for name in pictures for key in Image.open(folder / "report" / name).info}
    assert not described & {"exif", "xmp", "icc_profile", "comment", "Software"}


def test_a_single_file_holds_all_pictures(folder: Path) -> None:
    linked = re.findall(r'<img src="([^"]+)"', run_report(folder))
    files = {name: (folder / "report" / name).read_bytes() for name in linked}
    inline = re.findall(
        r'<img src="data:image/\w+;base64,([^"]+)"', run_report(folder, {"report.single_file": True})
    )
    assert [b64decode(one) for one in inline] == [files[name] for name in linked]
    written = {path.name for path in (folder / "report").iterdir()}
    assert written == {"index.html", "legend.json"}


def test_an_input_that_changes_while_it_runs(folder: Path, change_at_end: Any) -> None:
    before = run_report(folder)
    change_at_end(lambda: (folder / "raw.json").write_text("{}"))
    with pytest.raises(UserError) as raised:
        run_report(folder)
    assert str(raised.value) == (
        f"report: changed while it ran: {folder}/raw.json; its result would belong to neither the old nor "
        "the new, so nothing is written; run `dvc repro` again"
    )
    assert (folder / "report/index.html").read_text() == before


def test_all_that_it_reads_is_watched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[Path] = []
    monkeypatch.setattr(report.Watch, "check", lambda watch: watched.extend(watch.inputs))
    run_report(folder)
    assert sorted(watched) == sorted(folder / path for name, path in INPUTS.items() if name != "out")


def test_tags_are_balanced(folder: Path) -> None:
    class Balance(HTMLParser):
        open: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img", "link", "input", "br"):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            """One that closes itself."""

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Balance()
    parser.feed(run_report(folder))
    assert parser.open == []


def test_tiles_of_one_file_have_names_of_their_own(folder: Path) -> None:
    path = folder / "images/val/index.csv"
    index = pd.read_csv(path)
    index["source"] = ["street.png", "street.png", "square.png"]
    index.to_csv(path, index=False)
    page = run_report(folder)
    for name in ("street.png, tile 1", "street.png, tile 2", "square.png"):
        assert f'alt="Photograph {name}"' in page


def test_names_of_classes_and_files_are_escaped(folder: Path) -> None:
    page = run_report(folder)
    assert "<b>&" not in page
    assert "<i>" not in page
    assert "<h3>&lt;i&gt;0.png</h3>" in page
    assert "</span>&lt;b&gt;&amp;</h3>" in page


def test_scores_are_shown_in_per_cent_and_nulls_as_a_dash(folder: Path) -> None:
    table = run_report(folder).partition('<table class="scores">')[2].partition("</table>")[0]
    rows = re.findall(r'<tr class="(\w*)"><th scope="row">(.*?)</th>(.*?)</tr>', table)
    assert [(kind, name) for kind, name, _ in rows] == [
        ("first", "prediction"),
        ("", "prediction + CRF"),
        ("baseline", "k-means on color and position"),
        ("", "truth"),
    ]
    dash = "\N{EN DASH}"
    assert _cells(rows[3][2]) == [dash, dash, dash, dash, "1.5", dash, "12.5"]
    assert _cells(rows[0][2]) == ["61.2", "40.0", "\N{EN DASH}", "3", "2.5", "50.0", "25.0"]


def test_what_was_read_is_shown(folder: Path) -> None:
    page = run_report(folder)
    assert "to learn from</th><td>6</td><td>20 (10 to 30)</td><td>20 (10 to 30)</td>" in page
    assert "to look at</th><td>3</td><td>20 (10 to 30)</td><td>9</td>" in page
    assert "&lt;b&gt;&amp; 25.0, grass 75.0." in page
    assert "12.5 percent of all pixels are ignored." in page
    assert "Left out: 7, no &lt;label&gt; map (a&lt;b&gt;.png)." in page
    assert "All of them are in <code>data/left_out.csv</code>." in page
    assert "Check the data: 255 is &lt;no&gt; class." in page
    assert "a &lt;note&gt;." in page


def test_readings_are_shown(folder: Path) -> None:
    page = run_report(folder)
    rows = re.findall(r'<th scope="row">(\w+)</th><td class="word">(.*?)</td>(<td>.*?)</tr>', page)
    cells = [(classes, reading, re.findall("<td>(.*?)</td>", rest)) for classes, reading, rest in rows]
    dash = "\N{EN DASH}"
    assert cells == [
        ("all", "overall", ["61.2", "40.0", "61.2", "40.0", "2"]),
        ("things", "truth alone", ["50.0", dash, "50.0", dash, "0"]),
        ("stuff", "averaged, many to one", ["25.0", "12.5", "25.0", "12.5", "1"]),
    ]


def test_without_a_crf_the_page_shows_none(folder: Path) -> None:
    assert "CRF" in run_report(folder)
    page = run_report(folder, {"refine.backend": "none"})
    assert "CRF" not in page
    assert not list((folder / "report").glob("image_*_after.png"))
    rows = re.findall(r'<th scope="row">\w+</th><td class="word">.*?</td>(<td>.*?)</tr>', page)
    assert [len(re.findall("<td>", row)) for row in rows] == [3, 3, 3]


def test_other_matchings_are_not_called_things_and_stuff(folder: Path) -> None:
    """As of a set whose classes have no kind, with more clusters than classes."""
    assert "Things and stuff: five ways to count" in run_report(folder)
    for name in ("raw", "refined"):
        path = folder / f"{name}_readings.csv"
        readings = pd.read_csv(path)
        readings["classes"], readings["reading"] = "all", "overall"
        readings.to_csv(path, index=False)
    page = run_report(folder)
    assert "<summary>Another matching</summary>" in page
    assert "truth and prediction" not in page


def test_readings_of_another_run_are_refused(folder: Path) -> None:
    pd.DataFrame(READINGS)[:2].to_csv(folder / "refined_readings.csv", index=False)
    with pytest.raises(UserError, match="rows of raw and refined differ; run `dvc repro evaluate`"):
        run_report(folder)


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
    harmless = _parts(run_report(folder))
    for names in (HOSTILE[:5], HOSTILE[5:]):
        write_classes(folder / "truth", tuple(names[:2]))
        for table, column in (("classes.csv", "class"), ("images/val/index.csv", "source")):
            content = pd.read_csv(folder / table, keep_default_na=False)
            content[column] = names[:2] if column == "class" else names[2:]
            content.to_csv(folder / table, index=False)
        confusion = pd.DataFrame(CONFUSION)
        confusion["actual"] = [name for name in names[:2] for _ in range(4)]
        confusion.to_csv(folder / "confusion.csv", index=False)
        found = _parts(run_report(folder))
        assert found.parts == harmless.parts
        shown = [found.text.count(name) for name in names]
        assert min(shown[:2]) > 5, "in the legend, the filter, cards, bars, the confusion matrix"
        assert shown[2:] == [1, 1, 1]


def test_bytes_are_the_same_again(folder: Path) -> None:
    run_report(folder)
    first = {path.name: path.read_bytes() for path in (folder / "report").iterdir()}
    run_report(folder)
    assert {path.name: path.read_bytes() for path in (folder / "report").iterdir()} == first
    assert not any(b"Software" in content for content in first.values())


def test_without_truth_it_says_so_and_shows_no_truth(folder: Path) -> None:
    write_classes(folder / "truth", ())
    np.save(folder / "truth/val.npy", np.full((VAL, SIZE, SIZE), 255, np.uint8))
    (folder / "classes.csv").write_text("class,cluster,iou,accuracy,pixels\n")
    pd.DataFrame(CONFUSION)[:0].to_csv(folder / "confusion.csv", index=False)
    for name, key in (("raw", "raw"), ("refined", "refined")):
        pd.DataFrame(READINGS)[:0].to_csv(folder / f"{name}_readings.csv", index=False)
        write_metrics(folder / f"{name}.json", {key: FREE})
    with_truth = 4
    page = run_report(folder)
    assert "has no labels" in page
    assert "mIoU" not in page
    assert "Things and stuff" not in page
    assert 'id="classes"' not in page
    assert '<table class="heat">' not in page
    assert not list((folder / "report").glob("*truth*"))
    assert "surest first" in page
    assert Image.open(folder / "report/panels.png").height < with_truth * 112


def test_a_cluster_wears_the_colour_of_its_class(folder: Path) -> None:
    np.save(folder / "refined.npy", np.full((VAL, SIZE, SIZE), 3, np.uint8))
    np.save(folder / "truth/val.npy", np.zeros((VAL, SIZE, SIZE), np.uint8))
    run_report(folder)
    shown = [
        np.asarray(Image.open(folder / f"report/image_00000_{name}.png").convert("RGB"))
        for name in ("truth", "after")
    ]
    np.testing.assert_array_equal(*shown)
    assert shown[0].shape == (SIZE, SIZE, 3)


def test_ignored_pixels_are_gray(folder: Path) -> None:
    np.save(folder / "truth/val.npy", np.full((VAL, SIZE, SIZE), 255, np.uint8))
    page = run_report(folder)
    picture = Image.open(folder / "report/image_00000_truth.png").convert("RGB")
    assert picture.getcolors() == [(SIZE * SIZE, (128, 128, 128))]
    assert page.count(">no label</span>") == VAL


def _score_maps(best: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Scores float16 [M, K, h, w]: `best` has `margin`, all others 0."""
    scores = np.zeros((len(best), K, *best.shape[1:]), np.float16)
    np.put_along_axis(scores, best[:, None], margin[:, None], 1)
    return scores


def test_images_have_their_accuracy_and_what_they_show(folder: Path) -> None:
    truth = np.zeros((VAL, SIZE, SIZE), np.uint8)
    truth[1, : SIZE // 2], truth[1, 0, 0] = 1, 255
    best = np.full((VAL, 8, 8), 3)  # class 0
    best[2] = 0  # nobody's
    np.save(folder / "truth/val.npy", truth)
    np.save(folder / "predictions.npy", _score_maps(best, np.ones(best.shape)))
    np.save(folder / "refined.npy", np.full((VAL, SIZE, SIZE), 2, np.uint8))
    found = re.findall(r'data-place="(\d)" data-score="([\d.]+)" data-shows="([^"]*)"', run_report(folder))
    half = f"{SIZE * SIZE / 2 / (SIZE * SIZE - 1):.4f}"
    assert found == [("0", "1.0000", "c0 k3 k2"), ("1", half, "c0 c1 k3 k2"), ("2", "0.0000", "c0 k0 k2")]


def test_the_purest_regions_come_first_and_each_is_of_another_image(folder: Path) -> None:
    """Cluster 1 fills a quarter of every image, most surely in the last one; its top right is at (0, 8)."""
    best, margin = np.zeros((VAL, 8, 8), int), np.ones((VAL, 8, 8))
    best[:, :4, 4:] = 1
    margin *= np.array([1, 2, 3])[:, None, None]
    images = np.zeros((VAL, SIZE, SIZE, 3), np.uint8)
    images[:, :8, 8:] = np.array([60, 120, 180])[:, None, None, None]
    np.save(folder / "images/val/images.npy", images)
    np.save(folder / "predictions.npy", _score_maps(best, margin))
    run_report(folder, {"report.regions_per_cluster": 2})
    regions = sorted((folder / "report").glob("region_001_*"))
    middles = [np.asarray(Image.open(path).convert("RGB"))[4, 4].tolist() for path in regions]
    np.testing.assert_allclose(middles, [[180] * 3, [120] * 3], atol=3)


def _name(folder: Path, names: str) -> None:
    clusters = lineage(folder / "centroids.safetensors").own
    (folder / "names.yaml").write_text(f"clusters: {clusters!r}\nnames: {names}\n")


def test_merged_clusters_are_one_everywhere(folder: Path) -> None:
    _name(folder, '{1: meadow, 2: meadow, 0: {name: stone, color: "#102030"}}')
    page = run_report(folder)
    cards = re.findall(r'data-key="(k\d)" data-name="([^"]*)" data-color="([^"]*)"', page)
    colours = {key: colour for key, _, colour in cards}
    assert {(key, name) for key, name, _ in cards} == {
        ("k0", "stone"),
        ("k1", "meadow"),
        ("k3", "&lt;b&gt;&amp;"),
    }
    assert colours["k0"] == "#102030"
    heading = page.partition('<table class="heat">')[2].partition("</thead>")[0]
    assert re.findall(r"</span>([^<]+)</span></th>", heading) == ["&lt;b&gt;&amp;", "meadow", "stone"]
    assert "clusters 1, 2" in page
    assert "<br>cluster 1 matched with the class grass, IoU 25.0 %" in page
    assert "<br>matched with the class &lt;b&gt;&amp;, IoU 50.0 %" in page, "the number stands above"
    legend = json.loads((folder / "report/legend.json").read_text())
    assert [row["merged_into"] for row in legend["clusters"]] == [0, 1, 1, 3]
    assert [row["color"] for row in legend["clusters"]][1:3] == [colours["k1"]] * 2
    assert 'value="meadow"' in page


def test_a_color_that_is_given_to_a_class_is_in_the_truth_and_in_the_legend(folder: Path) -> None:
    np.save(folder / "truth/val.npy", np.ones((VAL, SIZE, SIZE), np.uint8))
    _name(folder, '{1: {name: grass, color: "#00ff00"}}')
    page = run_report(folder)
    truth = Image.open(folder / "report/image_00000_truth.png").convert("RGB")
    assert truth.getcolors() == [(SIZE * SIZE, (0, 255, 0))]
    legend = page.partition('<ul class="legend">')[2].partition("</ul>")[0]
    assert '<span class="swatch" style="background: #00ff00"></span>grass' in legend
    assert "correct pixels have the same color as in the truth" in page


def test_colors_that_follow_names_are_not_said_to_follow_the_matching(folder: Path) -> None:
    _name(folder, "{3: grass}")
    page = " ".join(run_report(folder).split())
    assert "correct pixels have the same color" not in page
    assert "A cluster has the color of its name." in page
    assert "whatever the clusters are named" in page


@pytest.mark.parametrize(
    ("init", "is_published"),
    [("", False), ("models/previous/0123456789ab/backbone.safetensors", False), ("weights/dino.pth", True)],
)
def test_a_backbone_of_an_earlier_run_is_no_published_model(
    folder: Path, init: str, is_published: bool
) -> None:
    page = run_report(folder, {"pretrain.init": init})
    assert ("the backbone starts from a published model" in page) == is_published


def test_names_of_other_clusters_are_not_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "names.yaml").write_text("clusters: 'aaaaaaaaaaaa'\nnames: {1: meadow}\n")
    page = run_report(folder)
    assert "meadow" not in page
    assert "The given names are not used." in page
    assert "names clusters aaaaaaaaaaaa, but those in use are" in page
    assert "report: warning: The given names are not used." in capsys.readouterr().err


def test_a_template_of_other_clusters_is_no_name_that_is_lost(folder: Path) -> None:
    (folder / "names.yaml").write_text("clusters: 'aaaaaaaaaaaa'\nnames: {1: cluster 1, 2: cluster 2}\n")
    page = run_report(folder)
    assert "The given names are not used." not in page
    assert 'data-cluster="2" value=""' in page, "a field to fill in"


def test_the_confusion_matrix_has_shares_of_each_class(folder: Path) -> None:
    table = run_report(folder).partition('<table class="heat">')[2].partition("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
    assert [(name, _cells(cells)) for name, cells in rows] == [
        ("&lt;b&gt;&amp;", ["80", "10", "10", "0"]),
        ("grass", ["25", "25", "25", "25"]),
    ]


def test_curves_show_each_figure_by_epoch(folder: Path) -> None:
    page = run_report(folder)
    assert page.count("<polyline") == 1, "the note is no number, and nothing was pretrained"
    assert 'points="0.0,0.0 240.0,90.0"' in page
    assert "No epochs were trained." in page
    assert '<span class="soft">what training makes small' in page


def test_guidance_of_the_weight_auto_is_judged_by_what_train_chose(folder: Path) -> None:
    for weight, said in ((0.0, False), (0.15, True)):
        history = {"epoch": [1, 2], "loss": [2.0, 1.5], "guidance_weight": weight}
        pd.DataFrame(history).to_csv(folder / "train.csv", index=False)
        page = run_report(folder, {"train.image_loss.weight": "auto"})
        assert ("The pseudo-labels, which guide training" in page) is said


def test_every_setting_is_listed(folder: Path) -> None:
    page = run_report(folder, {"train.image_loss.weight": 0.25})
    assert '<th scope="row">train.image_loss.weight</th><td class="word">0.25</td>' in page
    assert '<th scope="row">pretrain.crop_area</th><td class="word">[0.2, 1.0]</td>' in page
    assert '<th scope="row">runtime.' not in page
    listed = {name.partition(".")[0] for name in re.findall(r'<th scope="row">([a-z_.0-9]+)</th>', page)}
    assert set(Params.model_fields) - {"device", "runtime"} <= listed


def test_everything_that_does_not_fit_is_told_at_once(folder: Path) -> None:
    np.save(folder / "refined.npy", np.full((VAL, 4, 4), K, np.uint8))
    np.save(folder / "kept_views.npy", np.zeros((5, 6), np.int32))
    write_tensors(folder / "centroids.safetensors", {"centroids": torch.eye(5)}, {})
    with pytest.raises(UserError) as raised:
        run_report(folder)
    assert raised.value.faults == (
        f"{folder / 'refined.npy'}: has shape [3, 4, 4], but the images require [3, 16, 16]; run `dvc repro`",
        f"{folder / 'kept_views.npy'}: has shape [5, 6], but the images require [6, 6]; run `dvc repro`",
        f"{folder / 'centroids.safetensors'}: has 5 clusters, but the predictions have 4; "
        "run `dvc repro predict`",
        f"{folder / 'refined.npy'}: has cluster id 4, but there are 4 clusters; run `dvc repro refine`",
    )
    assert not (folder / "report").exists()


def test_a_table_of_other_classes_is_refused(folder: Path) -> None:
    write_classes(folder / "truth", ("sky", "grass"))
    with pytest.raises(UserError, match="has other classes than the ground truth"):
        run_report(folder)
