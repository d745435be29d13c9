"""Files and folders that a user may not read or write: named, with the reason and what helps."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.core.artefacts import read_json, write_array, write_json
from stages.core.atomic import atomic_folder, atomic_path
from stages.core.images import open_images
from stages.core.tensors import read_tensors, write_tensors
from stages.reporting.lineage import Lineage
from stages.reporting.names import read_names
from stages.settings.errors import UserError
from tests.datasets import REPOSITORY, noise, write_image

READ = """
import sys
from pathlib import Path
from stages.core.artefacts import read_array, read_json
from stages.core.images import read_index
from stages.core.tensors import read_tensors
from stages.reporting.lineage import Lineage
from stages.reporting.names import read_names
from stages.settings.errors import UserError
for read, path in (
    (read_tensors, "model.safetensors"), (read_array, "array.npy"), (read_json, "figures.json"),
    (read_index, "."), (lambda path: read_names(path, num_clusters=2, clusters=Lineage("a")), "names.yaml"),
):
    try:
        read(Path(path))
    except UserError as error:
        print(error)
"""
LIST = """
from pathlib import Path
from stages.dataset.left_out import LeftOut
from stages.dataset.listing import list_images
left_out = LeftOut()
print(list_images(Path("photos"), left_out), {reason: names.examples for reason, names in left_out.items()})
"""
FETCH = """
from stages.readers.cocostuff.parts import Part
from stages.runtime.script import run
from stages.tools import fetch
fetch.COCO_PARTS = {"list": Part("http://127.0.0.1:9/list.txt", "a list", "curated", 10)}
run(fetch.main)
"""


WITHOUT_RIGHTS = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


@functools.cache
def why_root_keeps_its_rights() -> str:
    """Empty if a process may give them up, which a container can forbid."""
    if shutil.which(WITHOUT_RIGHTS[0]) is None:
        return "there is no setpriv(1)"
    ended = subprocess.run([*WITHOUT_RIGHTS, "true"], capture_output=True, text=True, check=False)
    return f"it keeps its rights here ({ended.stderr.strip()})" if ended.returncode else ""


def as_a_user(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python without the right of root to read and write everything."""
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if why := why_root_keeps_its_rights():
            pytest.skip(f"root may do everything, and {why}")
        before = WITHOUT_RIGHTS
    return subprocess.run(
        [*before, sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def test_a_file_that_may_not_be_read_is_not_called_absent_or_damaged(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"a": torch.ones(2)}, {})
    write_array(tmp_path / "array.npy", np.ones(2))
    write_json(tmp_path / "figures.json", {})
    (tmp_path / "index.csv").write_text("id\n")
    (tmp_path / "names.yaml").write_text("names: {}\n")
    files = ("model.safetensors", "array.npy", "figures.json", "index.csv", "names.yaml")
    for name in files:
        (tmp_path / name).chmod(0)
    said = as_a_user(tmp_path, "-c", READ)
    assert said.stdout.splitlines() == [
        f"{name}: cannot be read (Permission denied); allow this user to read it" for name in files
    ], said.stderr


def test_a_folder_that_may_be_listed_and_not_entered_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "locked/inner", "z"):
        write_image(tmp_path / f"photos/{name}/0.png", noise(0, 8, 8))
    (tmp_path / "photos/locked").chmod(0o444)
    try:
        said = as_a_user(tmp_path, "-c", LIST)
    finally:
        (tmp_path / "photos/locked").chmod(0o755)
    assert said.stdout == ("['a/0.png', 'z/0.png'] {'folder that this user may not read': ['locked']}\n"), (
        said.stderr
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("to", ["there", "there/coco"])
def test_a_download_to_where_nothing_may_be_written(tmp_path: Path, to: str) -> None:
    (tmp_path / "there").mkdir(mode=0o555)
    ended = as_a_user(tmp_path, "-c", FETCH, "cocostuff", "--to", to)
    assert ended.returncode == 2
    assert ended.stderr.endswith(
        f"error: {to}: cannot be written (Permission denied); allow this user to write there and run the "
        "same command again\n"
    )


# What is in the way, and what is not there


@pytest.mark.parametrize("name", ["file/out.json", "file/deep/out.json"])
def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    for write in (atomic_path, atomic_folder):
        with pytest.raises(UserError) as raised, write(tmp_path / name):
            pass
        assert str(raised.value) == (
            f"{tmp_path / name}: cannot be written, because {tmp_path / 'file'} is a file; choose another "
            "place, or move that file away"
        )


def test_a_folder_in_the_way_of_a_file_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "out/kept").mkdir(parents=True)
    with pytest.raises(UserError) as raised, atomic_path(tmp_path / "out") as written:
        written.write_text("x")
    assert str(raised.value) == (
        f"{tmp_path / 'out'}: cannot be written, because {tmp_path / 'out'} is a folder; choose another "
        "place, or move that folder away"
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "out"]


def test_a_file_in_the_way_of_a_result_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with (
        pytest.raises(UserError, match="out is a file; choose another place"),
        atomic_folder(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "out").read_text() == "x"


def test_names_that_are_not_there_are_not_made_by_the_pipeline(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read_names(tmp_path / "foo.yaml", num_clusters=2, clusters=Lineage("a"))
    assert str(raised.value) == (
        f"{tmp_path / 'foo.yaml'}: not found; correct the path, or write a first names.yaml with `make names`"
    )
    (tmp_path / "foo.yaml").write_text("names: [")
    with pytest.raises(UserError, match=r"(?s)foo\.yaml: not a names file \(.*\); correct it") as raised:
        read_names(tmp_path / "foo.yaml", num_clusters=2, clusters=Lineage("a"))
    assert "dvc repro" not in str(raised.value)


def test_what_the_pipeline_makes_it_can_make(tmp_path: Path) -> None:
    for read, path in ((read_tensors, "m.safetensors"), (read_json, "m.json"), (open_images, "images")):
        with pytest.raises(UserError, match=r"not found; run `dvc repro` to make it$"):
            read(tmp_path / path)
