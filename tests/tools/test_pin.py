"""`python -m stages.tools.pin`: images that were added, removed or changed are noticed, and accepted."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from stages.core.artefacts import write_metrics
from stages.core.tensors import write_tensors
from stages.dataset.raw_files import LISTING
from stages.dataset.source import list_data
from stages.settings.errors import UserError
from stages.settings.params import read
from stages.tools import pin, preset
from tests.datasets import REPOSITORY, noise, write_image, write_params

MODELS = ("backbone", "segmenter", "pixel_centroids")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty photographs that are pinned by the preset `folder`, with edits of params.yaml after that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    shutil.copytree(REPOSITORY / "presets", "presets")
    add(tmp_path / "photos", range(40))
    preset.main(["folder", "--data", "photos", "--no-estimate"])
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("seed: 0 ", "seed:   7 ", 1) + "# a word at the end")
    return tmp_path / "photos"


def add(root: Path, numbers: range) -> None:
    for number in numbers:
        write_image(root / f"{number:03d}.png", noise(number, 8, 8))


def message(argv: list[str]) -> str:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(UserError) as raised:
        pin.main(argv)
    assert Path("params.yaml").read_bytes() == before
    return str(raised.value)


def test_nothing_has_changed(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pin.main(["--check"])
    assert capsys.readouterr().out == "check_data: 40 files are as they were pinned\n"


def test_what_was_added_removed_and_changed_is_named(photos: Path) -> None:
    add(photos, range(100, 105))
    (photos / "003.png").unlink()
    write_image(photos / "004.png", noise(77, 8, 8))
    said = message(["--check"])
    assert said.startswith(
        "prepare.manifest_sha256: files have changed: 5 added (100.png, 101.png, 102.png, "
        "...), 1 gone (003.png), 1 changed (004.png); accept the files as they are with `make pin`, "
        "or restore them"
    )


def test_a_renamed_photograph_is_neither_added_nor_gone(photos: Path) -> None:
    (photos / "003.png").rename(photos / "trip.png")
    (photos / "005.png").rename(photos / "a.png")
    shutil.copy(photos / "a.png", photos / "b.png")
    (photos / "007.png").unlink()
    assert (
        ": 1 added (b.png), 1 gone (007.png), 0 changed, 2 renamed (003.png to trip.png, 005.png to a.png); "
        "accept the files"
    ) in message(["--check"])


def test_a_pin_changes_the_hash_and_no_other_byte(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, before = read(Path("params.yaml")).prepare.manifest_sha256, Path("params.yaml").read_bytes()
    add(photos, range(100, 102))
    (photos / "003.png").unlink()
    pin.main([])
    new = read(Path("params.yaml")).prepare.manifest_sha256
    assert new != old
    after = Path("params.yaml").read_bytes()
    assert after.replace(f"'{new}'".encode(), old.encode()) == before.replace(
        f"'{old}'".encode(), old.encode()
    )
    said = capsys.readouterr().out
    assert "since the last pin: 2 added (100.png, 101.png), 1 gone (003.png), 0 changed" in said
    pin.main(["--check"])
    again = Path("params.yaml").read_bytes()
    pin.main([])
    assert Path("params.yaml").read_bytes() == again
    assert "the files are those that are pinned" in capsys.readouterr().out


def test_a_file_with_other_line_ends_and_quotes_is_edited_in_place(photos: Path) -> None:
    old = read(Path("params.yaml")).prepare.manifest_sha256
    text = Path("params.yaml").read_text().replace(old, f'"{old}"').replace("\n", "\r\n")
    Path("params.yaml").write_bytes(text.encode())
    add(photos, range(100, 101))
    pin.main([])
    new = read(Path("params.yaml")).prepare.manifest_sha256
    assert Path("params.yaml").read_bytes() == text.replace(f'"{old}"', f"'{new}'").encode()


def test_a_file_that_was_only_touched_or_copied_is_no_change(photos: Path) -> None:
    for number in range(40):
        os.utime(photos / f"{number:03d}.png", ns=(0, number))
    pin.main(["--check"])
    Path(LISTING).unlink()  # as in a fresh clone
    pin.main(["--check"])
    assert Path(LISTING).exists()


def test_without_a_listing_the_images_of_the_last_run_say_what_is_new(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = list_data(read(Path("params.yaml")).prepare)
    for split, items in (("train", data.train), ("val", data.val)):
        folder = Path("data/images") / split
        folder.mkdir(parents=True)
        rows = [(item.id, item.source, 8, 8, _sha256(photos / item.source)) for item in items]
        lines = ["id,source,width,height,sha256", *(",".join(map(str, row)) for row in rows)]
        (folder / "index.csv").write_text("\n".join(lines) + "\n")
    Path(LISTING).unlink()
    add(photos, range(100, 101))
    assert "files have changed; accept" in message(["--check"])
    pin.main([])
    assert "images, since the last run: 1 added (100.png), 0 gone, 0 changed" in capsys.readouterr().out


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_settings_that_could_be_raised_or_must_be_lowered_are_named(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(Path("params.yaml"))
    assert before.pretrain.batch_size < 32
    add(photos, range(100, 160))
    pin.main([])
    said = capsys.readouterr().out
    assert f"pretrain.batch_size: {before.pretrain.batch_size} could be raised to 32 (" in said
    assert re.search(rf"global_k: {before.global_k} could be raised to \d+ \(at least eight images ", said)
    for path in sorted(photos.iterdir())[4:]:
        path.unlink()
    pin.main([])
    assert f"global_k: {before.global_k} is too large now; lower it to 2" in capsys.readouterr().out
    assert read(Path("params.yaml")).global_k == before.global_k


def test_no_advice_to_lower_a_setting_to_the_value_that_it_has(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(Path("params.yaml")).pretrain.bn_splits == 1
    for path in sorted(photos.iterdir())[6:]:
        path.unlink()
    pin.main([])
    said = capsys.readouterr().out
    assert "pretrain.batch_size: " in said
    assert "bn_splits" not in said


def test_a_fault_of_the_folder_is_no_missing_folder_in_a_copy_of_dvc(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy("params.yaml", copy)
    monkeypatch.setenv("DVC_ROOT", str(photos.parent))
    monkeypatch.chdir(copy)
    for path in photos.iterdir():
        path.unlink()
    (photos / "notes.txt").write_text("no image")
    assert "photos" in message(["--check"])


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_folder_that_is_not_there_stops_nothing(
    photos: Path, is_empty: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is not mounted can leave an empty folder."""
    photos.rename(photos.with_name("elsewhere"))
    if is_empty:
        photos.mkdir()
    pin.main(["--check"])
    assert (
        "photos: is not there, or empty, so nothing says whether images were added" in capsys.readouterr().err
    )
    assert message([]).startswith("photos: has no images" if is_empty else "photos: no such folder")


def test_the_models_of_the_last_run_are_kept_and_used(photos: Path) -> None:
    assert message(["--warm"]).startswith(
        "models/backbone.safetensors: not found, so there is no model to start"
    )
    write_models()
    text = Path("params.yaml").read_text()
    assert text.count("  init_key: ''") == 1
    Path("params.yaml").write_text(text.replace("  init_key: ''", "  init_key: student"))
    pin.main(["--warm"])
    params = read(Path("params.yaml"))
    folder = Path("models/previous") / _sha256(Path("models/pixel_centroids.safetensors"))[:12]
    assert (params.pretrain.init, params.train.init, params.cluster.previous) == (
        f"{folder}/backbone.safetensors",
        f"{folder}/segmenter.safetensors",
        str(folder),
    )
    assert params.pretrain.init_key == ""
    hashes = (params.pretrain.init_sha256, params.train.init_sha256, params.cluster.previous_sha256)
    assert hashes == tuple(_sha256(folder / f"{name}.safetensors") for name in MODELS)
    assert hashes == tuple(_sha256(Path(f"models/{name}.safetensors")) for name in MODELS)
    assert params.seed == 7
    first = {path: path.read_bytes() for path in folder.iterdir()}
    write_models(value=1)
    pin.main(["--warm"])  # of the next run: in a folder of its own
    assert {path: path.read_bytes() for path in folder.iterdir()} == first
    assert len(list(Path("models/previous").iterdir())) == 2


def test_a_published_backbone_that_is_used_as_it_is_stays_the_start(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report and the model card would take a copy of it for a model of this project."""
    write_models()
    Path("models/backbone.safetensors").unlink()  # not needed: `pretrain` makes the same again
    write_metrics(Path("metrics/pretrain.json"), {"pretrain": {"init": {"sha256": "0" * 64}}})
    text = Path("params.yaml").read_text().replace("  method: mocov2", "  method: none")
    text = text.replace("  init: ''", "  init: weights/dino.pth", 1)
    text = text.replace("  init_key: ''", "  init_key: student")
    Path("params.yaml").write_text(text)
    before = read(Path("params.yaml")).pretrain
    assert (before.method, before.init, before.init_key) == ("none", "weights/dino.pth", "student")
    pin.main(["--warm"])
    params = read(Path("params.yaml"))
    assert params.pretrain == before
    said = capsys.readouterr().out
    assert "  pretrain.init: stays 'weights/dino.pth', which pretrain.method: none uses as it is\n" in said
    folder = Path(params.cluster.previous)
    assert sorted(path.name for path in folder.iterdir()) == [
        "pixel_centroids.safetensors",
        "segmenter.safetensors",
    ]
    assert params.train.init == f"{folder}/segmenter.safetensors"


def test_a_backbone_that_was_trained_is_kept_if_pretraining_is_to_stop(photos: Path) -> None:
    write_models()
    write_metrics(Path("metrics/pretrain.json"), {"pretrain": {"epoch": 20.0, "loss": 1.0}})
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("  method: mocov2", "  method: none"))
    pin.main(["--warm"])
    params = read(Path("params.yaml"))
    assert params.pretrain.init == f"{params.cluster.previous}/backbone.safetensors"
    assert params.pretrain.init_sha256 == _sha256(Path("models/backbone.safetensors"))


def write_models(value: float = 0) -> None:
    """The models of one run, whose clusters name their segmenter."""
    for place, name in enumerate(MODELS):
        about = {"segmenter": _sha256(Path("models/segmenter.safetensors"))} if place == 2 else {}
        write_tensors(Path(f"models/{name}.safetensors"), {"x": torch.full((1,), place + value)}, about)


def test_a_segmenter_beside_the_clusters_of_another_is_not_kept(photos: Path) -> None:
    write_models()
    write_tensors(Path("models/segmenter.safetensors"), {"x": torch.zeros(1)}, {})
    said = message(["--warm"])
    assert said.startswith("models/pixel_centroids.safetensors: the clusters were made for another segmenter")
    assert said.endswith("; run `dvc repro cluster`")
    assert not Path("models/previous").exists()


def test_nothing_is_copied_or_replaced_unless_the_models_can_be_pinned(photos: Path) -> None:
    write_models()
    photos.rename(photos.with_name("elsewhere"))
    assert message(["--warm"]).startswith("photos: no such folder")
    photos.with_name("elsewhere").rename(photos)
    params = Path("params.yaml").read_text()
    Path("params.yaml").write_text(params.replace("  previous: ''", "  previous: &anchor ''"))
    assert "is written in a way that cannot be edited here" in message(["--warm"])
    assert not Path("models/previous").exists()
    Path("params.yaml").write_text(params)
    pin.main(["--warm"])
    write_tensors(Path("models/backbone.safetensors"), {"x": torch.ones(2)}, {})
    assert "/backbone.safetensors: differs from models/backbone.safetensors" in message(["--warm"])


def test_the_demo_has_nothing_to_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(Path("params.yaml"))
    assert message([]).startswith("prepare.reader: demo draws its own images, so there is nothing to pin")
    pin.main(["--check"])
    assert "no files are pinned" in capsys.readouterr().out


def test_what_cannot_be_edited_is_said(photos: Path) -> None:
    text = Path("params.yaml").read_text()
    old = read(Path("params.yaml")).prepare.manifest_sha256
    Path("params.yaml").write_text(text.replace(f"sha256: {old}", f"sha256: &pinned {old}"))
    add(photos, range(100, 101))
    assert (
        "is written in a way that cannot be edited here; set by hand: prepare.manifest_sha256: '"
        in message([])
    )
