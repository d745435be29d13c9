"""`python -m stages.runtime.preset`: another params.yaml, fitted to the data."""

import subprocess
from pathlib import Path

import pytest

from stages.runtime import preset
from stages.runtime.errors import UserError
from stages.runtime.params import read
from tests.datasets import REPOSITORY, folder_manifest, make_folder


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


def test_without_labels_the_number_of_classes_is_the_users(repository: Path) -> None:
    make_folder(repository / "photos", labels=False)
    preset.main(["folder", "--data", "photos"])
    assert read(Path("params.yaml")).pixel_k == read(Path("presets/folder.yaml")).pixel_k


def test_edits_that_are_not_committed_are_kept(repository: Path) -> None:
    edited = Path("params.yaml").read_text().replace("seed: 0 ", "seed: 7 ")
    Path("params.yaml").write_text(edited)
    with pytest.raises(UserError) as raised:
        preset.main(["demo"])
    assert str(raised.value) == (
        "params.yaml: has edits that are not committed, and a preset would overwrite them; "
        "commit them (git commit params.yaml), or say FORCE=1 (--force)"
    )
    assert Path("params.yaml").read_text() == edited
    preset.main(["demo", "--force"])
    assert read(Path("params.yaml")).seed == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cocoo"], "presets/cocoo.yaml: no such preset; there are: demo, folder"),
        (["folder"], "preset folder reads images from a folder; name it with DATA=... (--data)"),
        (["demo", "--data", "x"], "preset demo makes its own data; leave DATA (--data) away"),
    ],
)
def test_what_cannot_be_is_said(repository: Path, argv: list[str], message: str) -> None:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(UserError) as raised:
        preset.main(argv)
    assert str(raised.value) == message
    assert Path("params.yaml").read_bytes() == before


def test_a_folder_that_is_not_there_is_named(repository: Path) -> None:
    with pytest.raises(UserError, match=r"^nowhere: "):
        preset.main(["folder", "--data", "nowhere"])
