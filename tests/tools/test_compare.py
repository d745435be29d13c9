"""Two runs side by side, read from git and DVC's cache while the working tree stays as it is."""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.dataset.truth import write_classes
from stages.reporting.lineage import lineage
from stages.settings.errors import UserError
from stages.tools import compare
from tests.browser import open_browser
from tests.datasets import write_params
from tests.report_inputs import INPUTS, SIZE, VAL, write_report_inputs

PLACES = {
    "images": "data/images",
    "truth": "data/truth",
    "predictions": "data/predictions.npy",
    "refined": "data/refined.npy",
    "centroids": "models/pixel_centroids.safetensors",
    "raw": "metrics/evaluate/raw.json",
    "refined-scores": "metrics/evaluate/refined.json",
    "per-class": "metrics/evaluate/raw_per_class.csv",
}


def _call(*command: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def _commit(tag: str) -> None:
    _call("git", "add", "--all")
    _call("git", "commit", "--quiet", "--message", tag)
    _call("git", "tag", tag)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tagged runs, `flat` and `steep`; predictions are in DVC's cache, all else in git."""
    root, inputs = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("inputs")
    with contextlib.chdir(root):
        _make(root, inputs)
    return root


@pytest.fixture
def repository(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the current folder."""
    shutil.copytree(made, tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path / "repository"


def _make(root: Path, inputs: Path) -> None:
    write_report_inputs(inputs)
    np.save(inputs / "truth/val.npy", np.zeros((VAL, SIZE, SIZE), np.uint8))
    for name, place in PLACES.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        source = inputs / INPUTS[name]
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / place)
    write_params(root / "params.yaml", {"train.lr": 0.001})
    _call("git", "init", "--quiet")
    for key, value in (("user.name", "a"), ("user.email", "a@b")):
        _call("git", "config", key, value)
    dvc = (sys.executable, "-m", "dvc")
    _call(*dvc, "init", "--quiet")
    scores = np.zeros((VAL, 4, 8, 8), np.float16)
    scores[:, 3] = 1  # all right: class 0 is cluster 3
    np.save("data/predictions.npy", scores)
    _call(*dvc, "add", "--quiet", "data/predictions.npy")
    _commit("flat")
    scores[1, 1] = 2  # in the image with the number 1, all wrong
    np.save("data/predictions.npy", scores)
    np.save("data/refined.npy", np.full((VAL, SIZE, SIZE), 1, np.uint8))
    write_params(root / "params.yaml", {"train.lr": 0.5})
    clusters = lineage(root / PLACES["centroids"]).own
    (root / "names.yaml").write_text(f"clusters: {clusters!r}\nnames: {{1: meadow}}\n")
    _call(*dvc, "add", "--quiet", "data/predictions.npy")
    _commit("steep")
    (root / "params.yaml").write_text("not: read\n")


def test_two_runs_side_by_side(repository: Path, tmp_path: Path) -> None:
    before = _call("git", "status", "--porcelain")
    compare.main(["flat", "steep", "--out", str(tmp_path / "page")])
    page = (tmp_path / "page/compare.html").read_text()
    assert "Two runs on the same validation images.\nDifferences are the second" in page
    assert "<td>0.001</td><td>0.5</td>" in page
    assert page.count('<th scope="row">train.') == 1
    assert re.findall(r"meadow</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", page) == [
        ("0.0", "100.0", "+100.0")
    ]
    shown = re.findall(r"<h3>(.*?)</h3><span class=\"score\">(.*?)</span>", page)
    assert shown == [
        ("&lt;i&gt;1.png", "100 % → 0 %"),
        ("&lt;i&gt;0.png", "100 % → 100 %"),
        ("&lt;i&gt;2.png", "100 % → 100 %"),
    ]
    pictures = set(re.findall(r'<img src="([^"]+)"', page))
    written = {path.name for path in (tmp_path / "page").iterdir()}
    assert pictures < written
    assert "http" not in page
    assert _call("git", "status", "--porcelain") == before
    assert (repository / "params.yaml").read_text() == "not: read\n"
    compare.main(["flat", "steep", "--out", str(tmp_path / "page"), "--images", "1"])
    assert (tmp_path / "page/compare.html").read_text().count("<h3>") == 1
    (tmp_path / "link").symlink_to("page")
    compare.main(["flat", "steep", "--out", str(tmp_path / "link"), "--images", "2"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "page/compare.html").read_text().count("<h3>") == 2


def _swatches(rest: str) -> str:
    return "".join(f'<span class="swatch" style="background: {colour}"></span>' for colour in rest.split())


def test_colors_are_explained_by_a_legend_and_before_each_name(repository: Path, tmp_path: Path) -> None:
    """In `steep` the cluster of grass is called meadow; in `green` the other class has a color of its own."""
    page = tmp_path / "page/compare.html"
    grass = "#e69f00"  # the second color of the palette
    compare.main(["flat", "steep", "--out", str(page.parent)])
    text = page.read_text()
    assert text.count('<ul class="legend">') == 2, "of each run, because meadow is in one alone"
    assert f'<th scope="row">{_swatches(grass)}meadow</th>' in text
    assert "A cluster has the color of its matched class." in text
    assert "A name with two colors" not in text
    clusters = lineage(repository / PLACES["centroids"]).own
    names = '{3: {name: "<b>&", color: "#00ff00"}, 0: grass}'
    (repository / "names.yaml").write_text(f"clusters: {clusters!r}\nnames: {names}\n")
    _commit("green")
    compare.main(["flat", "green", "--out", str(page.parent)])
    text = page.read_text()
    assert f'<th scope="row">{_swatches("#0072b2 #00ff00")}&lt;b&gt;&amp;</th>' in text
    assert "A name with two colors has the first in flat and the second in green." in text
    assert "A cluster has the color of its name." in text
    assert "The truth has the\ncolors of flat." in text


def test_without_truth_each_run_has_the_colors_of_its_clusters(repository: Path, tmp_path: Path) -> None:
    write_classes(repository / "data/truth", ())
    np.save("data/truth/val.npy", np.full((VAL, SIZE, SIZE), 255, np.uint8))
    (repository / PLACES["per-class"]).write_text("class,cluster,iou,accuracy,pixels\n")
    clusters = lineage(repository / PLACES["centroids"]).own
    for name, names in (("free", "{}"), ("named", "{1: meadow}")):
        (repository / "names.yaml").write_text(f"clusters: {clusters!r}\nnames: {names}\n")
        _commit(name)
    compare.main(["free", "free", "--out", str(tmp_path / "page")])
    page = (tmp_path / "page/compare.html").read_text()
    assert page.count('<ul class="legend">') == 1
    assert '<th scope="row">number 1 by size</th>' in page
    compare.main(["free", "named", "--out", str(tmp_path / "page")])
    page = (tmp_path / "page/compare.html").read_text()
    assert page.count('<ul class="legend">') == 2
    assert f'<th scope="row">{_swatches("#e69f00")}meadow</th>' in page
    assert "in two runs; only names have.</p>" in page
    assert "truth" not in page


def test_pictures_can_be_enlarged_and_are_not_made_smaller(repository: Path, tmp_path: Path) -> None:
    compare.main(["flat", "steep", "--out", str(tmp_path / "page")])
    with open_browser(tmp_path / "chromium") as browser:
        for width in (360, 1440):
            browser.open(tmp_path / "page/compare.html", width=width)
            assert browser.run("document.documentElement.scrollWidth - innerWidth") <= 0
            sides = browser.run("[...document.querySelectorAll('.tiles img')].map((one) => one.clientWidth)")
            assert min(sides) >= SIZE
        assert min(sides) > 150, "six tiles to a row of the whole width"
        browser.run("document.querySelector('.enlarge').click()")
        assert browser.run("document.getElementById('viewer').open")
        name = browser.run("document.getElementById('viewer-name').textContent")
        assert name == "<i>1.png · 100 % → 0 %"
        assert browser.run("document.querySelectorAll('#viewer-tiles .tile').length") == 6
        assert "meadow" in browser.run("document.getElementById('viewer-legend').textContent")
        text = browser.run("document.getElementById('viewer-text').textContent")
        assert "flat: prediction: <b>& 100 %" in text
        assert "steep: after the CRF: meadow 100 %" in text
        browser.press("ArrowRight")
        assert browser.run("document.getElementById('viewer-name').textContent").startswith("<i>0.png")
        asked = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
        assert {url.split(":")[0] for url in asked} <= {"file", "data"}
        assert browser.seen("Runtime.exceptionThrown") == []


def test_without_a_crf_the_page_speaks_of_none(repository: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_params(repository / "params.yaml", {"refine.backend": "none", "seed": seed})
        _commit(f"seed{seed}")
    compare.main(["seed1", "seed2", "--out", str(tmp_path / "page")])
    page = (tmp_path / "page/compare.html").read_text()
    assert '<th scope="col">percent of the pixels</th>' in page
    assert "CRF" not in page


def test_the_working_tree_is_compared_without_a_commit(repository: Path, tmp_path: Path) -> None:
    (repository / "dvc.yaml").write_text(STAGES_THAT_DO_NOT_COUNT)
    write_params(repository / "params.yaml", {"train.lr": 0.25})
    before = _call("git", "status", "--porcelain")
    compare.main(["flat", "workspace", "--out", str(tmp_path / "page")])
    page = (tmp_path / "page/compare.html").read_text()
    assert "<title>flat and workspace</title>" in page
    assert "<td>0.001</td><td>0.25</td>" in page
    assert re.findall(r"meadow</th><td>(.*?)</td><td>(.*?)</td>", page) == [("0.0", "100.0")]
    assert _call("git", "status", "--porcelain") == before


STAGES_THAT_DO_NOT_COUNT = """\
stages:
  check_data: {cmd: "true", always_changed: true}
  report: {cmd: "true", deps: [names.yaml]}
"""


def test_a_working_tree_that_has_changed_since_its_run_is_refused(repository: Path, tmp_path: Path) -> None:
    """Its page would show results beside settings that they are not of."""
    command = ["flat", "workspace", "--out", str(tmp_path / "page")]
    (repository / "dvc.yaml").write_text("stages: {train: {cmd: 'true', deps: [params.yaml]}}\n")
    with pytest.raises(UserError, match=r"^workspace: has changed since its last run, at train \(see"):
        compare.main(command)
    (repository / "dvc.yaml").unlink()
    np.save("data/predictions.npy", np.zeros((VAL, 4, 8, 8), np.float16))
    with pytest.raises(
        UserError, match=r"last run, at data/predictions\.npy\.dvc \(see `dvc status`\); run `dvc repro`"
    ):
        compare.main(command)
    assert not (tmp_path / "page").exists()


LOCK = """\
stages:
  predict:
    outs: [{{path: data/predictions.npy, md5: new}}]
  refine:
    deps: [{{path: data/images/val, md5: same}}, {{path: data/predictions.npy, md5: {read}}}]
"""


def test_a_run_of_some_stages_is_refused(repository: Path, tmp_path: Path) -> None:
    """Its refined labels are those of an earlier prediction."""
    for read in ("old", "new"):
        (repository / "dvc.lock").write_text(LOCK.format(read=read))
        _commit(read)
    out = ["--out", str(tmp_path / "page")]
    with pytest.raises(UserError, match=r"^old: refine has not run since data/predictions\.npy changed"):
        compare.main(["flat", "old", *out])
    assert not (tmp_path / "page").exists()
    compare.main(["flat", "new", *out])
    assert (tmp_path / "page/compare.html").exists()


def test_what_cannot_be_compared_is_named(repository: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "page")]
    with pytest.raises(UserError, match=r"^nowhere: unknown Git revision 'nowhere'; `dvc exp show`"):
        compare.main(["flat", "nowhere", *out])
    shutil.rmtree(repository / ".dvc/cache")
    fault = (
        r"^flat: .*data/predictions\.npy.*neither in git nor in DVC's cache: commit a run with `git commit"
    )
    with pytest.raises(UserError, match=fault):
        compare.main(["flat", "steep", *out])
    assert not (tmp_path / "page").exists()
    with pytest.raises(UserError, match="--images: must be 1 or more, got -1"):
        compare.main(["flat", "steep", *out, "--images", "-1"])


def test_a_folder_that_is_not_in_the_cache_is_named(repository: Path, tmp_path: Path) -> None:
    _call("git", "rm", "-r", "--quiet", "--cached", "data/truth")
    _call(sys.executable, "-m", "dvc", "add", "--quiet", "data/truth")
    _commit("tracked")
    shutil.rmtree(repository / ".dvc/cache")
    with pytest.raises(UserError, match=r"^tracked: .*'data', 'truth'.*neither in git nor in DVC's cache"):
        compare.main(["tracked", "flat", "--out", str(tmp_path / "page")])


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, UserError), (errno.EACCES, PermissionError)])
def test_a_disk_that_is_too_small_for_both_runs_is_named(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(compare, "read_run", full)
    with pytest.raises(kind, match=r"TMPDIR to a folder on a larger disk|Permission denied"):
        compare.main(["flat", "steep", "--out", str(tmp_path / "page")])
    assert not (tmp_path / "page").exists()


def test_results_of_an_older_version_are_named_by_revision(repository: Path, tmp_path: Path) -> None:
    (repository / "metrics/evaluate/raw.json").write_text('{"raw": {"accuracy": 0.5}}')
    _commit("old")
    with pytest.raises(UserError) as refused:
        compare.main(["flat", "old", "--out", str(tmp_path / "page")])
    assert str(refused.value).startswith("old: its results are damaged, or made by a version of this project")
    assert "(metrics/evaluate/raw.json: not a metrics file of this version ('details');" in str(refused.value)


def test_what_this_tool_has_not_written_is_kept(repository: Path) -> None:
    (repository / "page").mkdir()
    for name in ("page/compare.html", "page/notes.txt"):
        (repository / name).write_text("mine")
    for out in ("data", "page", "params.yaml"):
        with pytest.raises(UserError, match="exists, and has other files than those of this tool; choose"):
            compare.main(["flat", "steep", "--out", out])
    assert (repository / "data/refined.npy").exists()
    assert (repository / "page/notes.txt").exists()


def test_runs_on_images_of_which_some_are_others_say_so(repository: Path, tmp_path: Path) -> None:
    """Scores are of all images of each run."""
    index = repository / "data/images/val/index.csv"
    index.write_text(index.read_text().replace("0.png", "0.jpg"))
    _commit("more")
    compare.main(["flat", "more", "--out", str(tmp_path / "page")])
    page = (tmp_path / "page/compare.html").read_text()
    assert f"Two runs on {VAL} and {VAL} validation images, which are not the same." in page
    assert page.count("<h3>") == VAL - 1


def test_runs_on_other_images_are_refused(repository: Path, tmp_path: Path) -> None:
    index = repository / "data/images/val/index.csv"
    index.write_text(index.read_text().replace(".png", ".jpg"))
    _commit("others")
    with pytest.raises(UserError, match="flat and others have no validation image in common"):
        compare.main(["flat", "others", "--out", str(tmp_path / "page")])
