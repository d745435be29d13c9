"""The stage `check_data` under DVC: `dvc repro` notices photographs that were added or moved away."""

from pathlib import Path
from typing import Any

import pytest

from tests.datasets import folder_manifest, make_folder, noise, write_image, write_params
from tests.pipeline.commands import make_clone, run

pytestmark = pytest.mark.xdist_group("pipeline")  # its processes are many

REPRO = "dvc", "repro", "check_data", "prepare"


def test_changed_photographs_stop_a_run_whose_stages_are_up_to_date(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    folder = tmp_path / "clone"
    make_clone(folder)
    make_folder(folder / "photos", num_train=16)
    changes = {"prepare.reader": "folder", "prepare.path": "photos", "runtime.check_data": ["files"]}
    changes["prepare.manifest_sha256"] = folder_manifest(folder / "photos")
    write_params(folder / "params.yaml", {**tiny, **changes})
    assert "files are as they were pinned" in run(folder, *REPRO)
    packed = (folder / "data/images/train/images.npy").read_bytes()

    shown = run(folder, *REPRO)
    assert "files are as they were pinned" in shown, "it runs each time"
    assert "Running stage 'prepare'" not in shown

    added = folder / "photos/images/train/part/added.png"
    write_image(added, noise(1, 40, 40))
    shown = run(folder, *REPRO, code=255)
    assert "files have changed: 1 added (images/train/part/added.png), 0 gone, 0 changed" in shown
    assert "Running stage 'prepare'" not in shown

    (folder / "photos").rename(tmp_path / "elsewhere")
    assert "photos: is not there, or empty, so nothing says whether images were added" in run(folder, *REPRO)
    assert (folder / "data/images/train/images.npy").read_bytes() == packed
