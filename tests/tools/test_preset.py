"""`python -m stages.tools.preset`: another params.yaml, fitted to the data."""

import subprocess
from pathlib import Path

import pytest

from stages.dataset.source import list_data
from stages.dataset.summary import manifest_sha256
from stages.dataset.taxonomy import read_taxonomy
from stages.settings.errors import UserError
from stages.settings.params import check_data_size, read
from stages.tools import preset
from tests.datasets import REPOSITORY, TAXONOMIES, folder_manifest, make_coco, make_folder, noise, write_image


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the presets, and the demo as its committed params.yaml."""
    (tmp_path / "presets").mkdir()
    for path in (REPOSITORY / "presets").glob("*.yaml"):
        (tmp_path / "presets" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "presets" / "demo.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        subprocess.run(["git", *identity, *command], check=True)
    return tmp_path


def test_the_demo_preset_is_the_committed_file(repository: Path) -> None:
    assert (REPOSITORY / "params.yaml").read_bytes() == (REPOSITORY / "presets" / "demo.yaml").read_bytes()
    preset.main(["demo"])
    assert Path("params.yaml").read_bytes() == Path("presets/demo.yaml").read_bytes()


def test_the_folder_preset_is_fitted_to_a_small_data_set(repository: Path) -> None:
    make_folder(repository / "photos", num_train=40, num_val=2)
    preset.main(["folder", "--data", "photos"])
    params = read(Path("params.yaml"))
    assert params.prepare.path == "photos"
    assert params.prepare.manifest_sha256 == folder_manifest(Path("photos"))
    assert params.pixel_k == 3  # classes.txt names three
    assert params.pretrain.batch_size <= 20
    assert params.pretrain.queue_size <= 20
    assert params.pretrain.queue_size % params.pretrain.batch_size == 0
    assert params.global_k == 5
    assert "# side of the square image" in Path("params.yaml").read_text()  # comments are kept


@pytest.mark.parametrize(("name", "num_classes"), [("cocostuff27", 27), ("cocostuff15", 15)])
def test_a_published_set_is_pinned_and_fitted(
    repository: Path, name: str, num_classes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    make_coco(repository / "coco", num_train=9)
    preset.main([name, "--data", "coco"])
    params = read(Path("params.yaml"))
    assert (params.pixel_k, params.prepare.path, params.pretrain.batch_size) == (num_classes, "coco", 4)
    assert params.prepare.manifest_sha256 == manifest_sha256(list_data(params.prepare))
    assert "train2017: the 8 images of curated/train2017/" in capsys.readouterr().out


def test_what_a_published_set_lacks_is_said(repository: Path) -> None:
    (repository / "city").mkdir()
    with pytest.raises(UserError) as raised:
        preset.main(["cityscapes27_stego", "--data", "city"])
    assert [fault.split(":")[0] for fault in raised.value.faults] == [
        "city/leftImg8bit/train",
        "city/leftImg8bit/val",
    ]


@pytest.mark.parametrize(
    ("name", "train_images"),
    [
        ("cocostuff27", 49_629),
        ("cocostuff15", 49_629),
        ("cityscapes27", 21_523),
        ("cityscapes27_stego", 2_975),
    ],
)
def test_presets_of_published_sets_fit_them_as_they_are(name: str, train_images: int, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(preset.as_text(preset.compose(name, REPOSITORY / "presets")), encoding="utf-8")
    check_data_size(path, train_images)
    params = read(path)
    assert params.pretrain.queue_size <= train_images // 2
    assert params.pixel_k == len(read_taxonomy(TAXONOMIES[params.prepare.taxonomy]).class_names)


@pytest.mark.parametrize(("lists", "by"), [(True, "lists"), (False, "fraction")])
def test_the_split_follows_what_is_there(repository: Path, lists: bool, by: str) -> None:
    root = repository / "photos"
    for number in range(4):
        write_image(root / f"images/{number}.png", noise(number, 8, 8))
    if lists:
        (root / "train.txt").write_text("0\n1\n2\n")
        (root / "val.txt").write_text("3\n")
    preset.main(["folder", "--data", "photos"])
    assert read(Path("params.yaml")).prepare.split.by == by


def test_without_labels_the_number_of_classes_is_the_users(repository: Path) -> None:
    make_folder(repository / "photos", labels=False)
    preset.main(["folder", "--data", "photos"])
    assert read(Path("params.yaml")).pixel_k == preset.compose("folder")["pixel_k"]


def test_edits_that_are_not_committed_are_kept(repository: Path) -> None:
    edited = Path("params.yaml").read_text().replace("seed: 0 ", "seed: 7 ")
    Path("params.yaml").write_text(edited)
    with pytest.raises(UserError) as raised:
        preset.main(["demo"])
    assert str(raised.value) == (
        "params.yaml: has uncommitted edits, which a preset would overwrite; "
        "commit them (git commit params.yaml), or pass FORCE=1 (--force)"
    )
    assert Path("params.yaml").read_text() == edited
    preset.main(["demo", "--force"])
    assert read(Path("params.yaml")).seed == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["cocoo"],
            "presets/cocoo.yaml: no such preset; available: cityscapes27, cityscapes27_stego, cocostuff15, "
            "cocostuff27, demo, folder",
        ),
        (["folder"], "preset folder reads images from a folder; set it with DATA=... (--data)"),
        (["demo", "--data", "x"], "preset demo generates its own data; remove DATA (--data)"),
    ],
)
def test_what_cannot_be_is_said(repository: Path, argv: list[str], message: str) -> None:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(UserError) as raised:
        preset.main(argv)
    assert str(raised.value) == message
    assert Path("params.yaml").read_bytes() == before


OWN = """\
extends: folder
preset: mine
seed: 3            # a seed of my own
report:
  views_per_cluster: 4
"""


def test_a_preset_of_ones_own_extends_another(repository: Path) -> None:
    Path("presets/mine.yaml").write_text(OWN)
    make_folder(repository / "photos", num_train=40, num_val=2)
    preset.main(["mine", "--data", "photos"])
    params, lines = read(Path("params.yaml")), Path("params.yaml").read_text().splitlines()
    assert (params.preset, params.seed, params.report.views_per_cluster) == ("mine", 3, 4)
    assert params.size_px == preset.compose("folder")["size_px"]
    assert any(line.startswith("seed: 3 ") and line.endswith(" # a seed of my own") for line in lines)
    # The blank line between sections is that of demo.yaml.
    place = lines.index("  views_per_cluster: 4")
    assert (lines[place + 1], lines[place + 2].split(":")[0]) == ("", "runtime")


def test_a_key_that_does_not_exist_is_named(repository: Path) -> None:
    Path("presets/mine.yaml").write_text("train:\n  epocs: 3\n")
    with pytest.raises(UserError) as raised:
        preset.main(["mine"])
    assert str(raised.value) == "presets/mine.yaml: train.epocs: unknown key; did you mean 'epochs'?"


def test_a_folder_that_is_not_there_is_named(repository: Path) -> None:
    with pytest.raises(UserError, match=r"^nowhere: "):
        preset.main(["folder", "--data", "nowhere"])
