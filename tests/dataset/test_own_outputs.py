"""Outputs of `segment` among photographs: they are known by segment.json, which is read once in a listing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stages.dataset import own_outputs
from stages.dataset.left_out import OWN_OUTPUT, LeftOut
from stages.dataset.listing import list_images
from stages.tools.segmenting.photographs import find_photographs

FOLDERS = [f"{number:02}" for number in range(20)]


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Photographs in subfolders, with two folders of outputs among them; lists each read of a manifest."""
    names = [f"{folder}/{name}" for folder in FOLDERS for name in ("a", "b")]
    for out in ("photos/x/found", "photos/found"):
        outputs = [f"{name}{end}" for name in names for end in (".png", "_overlay.jpg")]
        for path in (*(Path(f"photos/{name}.jpg") for name in names), *(Path(out, one) for one in outputs)):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        (tmp_path / out / "00/mine.jpg").touch()
        content = {"written_by": "fs4 segment", "files": dict.fromkeys(outputs, 1)}
        (tmp_path / out / "segment.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    read, done = own_outputs.read_manifest, []

    def note_and_read(folder: Path) -> dict[str, int] | None:
        done.append(folder.relative_to(tmp_path) if folder.is_absolute() else folder)
        return read(folder)

    monkeypatch.setattr(own_outputs, "read_manifest", note_and_read)
    return done


def _found(given: Sequence[str]) -> tuple[list[str], LeftOut]:
    left_out = LeftOut()
    return find_photographs(given, Path("/apart"), left_out, scores=False).names, left_out


def _listed() -> tuple[list[str], LeftOut]:
    left_out = LeftOut()
    return list_images(Path("photos"), left_out), left_out


@pytest.mark.parametrize(
    ("run", "num_left_out"),
    [
        (_listed, 2 * 80 + 2),  # with the manifests themselves
        (lambda: _found(["photos"]), 2 * 80 + 2),
        (lambda: _found(["photos/**/*.jpg"]), 2 * 40),
        (lambda: _found(["photos/*", "photos/found/*"]), 2 * 80 + 2),  # many folders, some of them twice
    ],
    ids=["prepare", "folder", "pattern", "folders"],
)
def test_each_manifest_is_read_once_in_a_listing(
    reads: list[Path], run: Callable[[], tuple[list[str], LeftOut]], num_left_out: int
) -> None:
    names, left_out = run()
    assert sorted(map(str, reads)) == ["photos/found", "photos/x/found"]
    assert [name for name in names if "found" in name] == ["found/00/mine.jpg", "x/found/00/mine.jpg"]
    assert len(names) == 40 + 2
    assert left_out[OWN_OUTPUT].count == num_left_out


@pytest.mark.parametrize(
    ("start", "given"),
    [
        ("photos/found/00", "."),
        ("photos/found/00", "../01"),
        ("photos/found/00", "*.jpg"),
        (".", "photos/x/../found/00"),
        (".", "link"),
        (".", "all/found/00"),
        (".", "link/*.jpg"),
        (".", "photos/found/02"),
    ],
)
def test_outputs_are_known_whatever_the_way_to_their_folder(
    reads: list[Path], start: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("link").symlink_to("photos/found/00")
    Path("all").symlink_to("photos")
    for folder in ("00", "01"):
        Path("photos/found", folder, "mine.jpg").touch()
    Path("photos/found/02").rename("elsewhere")  # such as on a larger disk
    Path("photos/found/02").symlink_to(tmp_path / "elsewhere")
    Path("elsewhere/mine.jpg").touch()
    monkeypatch.chdir(start)
    names, left_out = _found([given])
    assert [Path(name).name for name in names] == ["mine.jpg"]
    assert [path.name for path in reads] == ["found"]
    assert left_out[OWN_OUTPUT].count == (2 if "*" in given else 4)
