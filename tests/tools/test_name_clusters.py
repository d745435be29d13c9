"""`make names` through its command line: named by class or by number, and no given name is lost."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages.core.tensors import write_tensors
from stages.dataset.truth import write_classes
from stages.reporting.lineage import lineage
from stages.reporting.names import read_names
from stages.settings.errors import UserError
from stages.tools import name_clusters

EMPTY = "names: {}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three clusters: 0 covers a quarter, 2 the rest; 2 is sky, 0 is left for grass, 1 for nothing."""
    monkeypatch.chdir(tmp_path)
    for path in ("data/truth", "models", "metrics/evaluate"):
        Path(path).mkdir(parents=True)
    write_tensors(Path("models/pixel_centroids.safetensors"), {"centroids": torch.eye(3)}, {})
    scores = np.zeros((1, 3, 2, 2), np.float16)
    scores[0, 2], scores[0, 0, 0, 0] = 1, 2
    np.save("data/predictions.npy", scores)
    write_classes(Path("data/truth"), ("sky", "grass"))
    table = {
        "class": ["sky", "grass"],
        "cluster": [2, 0],
        "iou": [0.5, ""],
        "accuracy": [0.5, ""],
        "pixels": [9, 0],
    }
    pd.DataFrame(table).to_csv("metrics/evaluate/raw_per_class.csv", index=False)
    Path("names.yaml").write_text(EMPTY)
    return tmp_path


def _names(folder: Path) -> dict[int, str]:
    clusters = lineage(folder / "models/pixel_centroids.safetensors")
    return dict(read_names(folder / "names.yaml", num_clusters=3, clusters=clusters).of)


def test_clusters_are_named_after_their_classes(folder: Path) -> None:
    name_clusters.main([])
    assert _names(folder) == {2: "sky"}
    lines = (folder / "names.yaml").read_text().splitlines()
    assert lines[-3:] == [
        '  0: "cluster 0"  # 25.0 % of the pixels, no class',  # none of them is grass
        '  1: "cluster 1"  # 0.0 % of the pixels, no class',
        '  2: "sky"  # 75.0 % of the pixels, IoU 50.0 %',
    ]


def test_without_labels_it_is_a_template_of_numbers(folder: Path) -> None:
    write_classes(folder / "data/truth", ())
    Path("metrics/evaluate/raw_per_class.csv").write_text("class,cluster,iou,accuracy,pixels\n")
    for _ in range(2):  # a template that nobody has filled in is replaced
        name_clusters.main([])
    assert _names(folder) == {}
    lines = (folder / "names.yaml").read_text().splitlines()
    assert lines[-3:] == [
        '  0: "cluster 0"  # 25.0 % of the pixels',
        '  1: "cluster 1"  # 0.0 % of the pixels',
        '  2: "cluster 2"  # 75.0 % of the pixels',
    ]


def test_a_template_of_other_clusters_that_nobody_has_filled_in_is_replaced(folder: Path) -> None:
    text = "clusters: 'aaaaaaaaaaaa'\nnames: {0: cluster 0, 1: cluster 1}\n"
    (folder / "names.yaml").write_text(text)
    name_clusters.main([])
    assert _names(folder) == {2: "sky"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("names: {0: pond}\n", r"has 1 names \(0: pond\), which would be lost"),
        ("clusters: 'aaaaaaaaaaaa'\nnames: {0: pond}\n", "has names for other clusters, which would be lost"),
        ("names: [pond]\n", "names"),
    ],
)
def test_names_that_a_person_gave_are_kept_unless_forced(folder: Path, text: str, fault: str) -> None:
    (folder / "names.yaml").write_text(text)
    with pytest.raises(UserError, match=fault):
        name_clusters.main([])
    assert (folder / "names.yaml").read_text() == text
    name_clusters.main(["--force"])
    assert _names(folder)[2] == "sky"


def test_names_of_clusters_that_have_gone_are_not_lost_either(folder: Path) -> None:
    about = {"continues": ["aaaaaaaaaaaa"], "void": {"aaaaaaaaaaaa": [0]}}
    write_tensors(folder / "models/pixel_centroids.safetensors", {"centroids": torch.eye(3)}, about)
    (folder / "names.yaml").write_text("clusters: 'aaaaaaaaaaaa'\nnames: {0: pond}\n")
    assert _names(folder) == {}
    with pytest.raises(UserError, match=r"has 1 names \(0: pond\), which would be lost"):
        name_clusters.main([])


def test_predictions_of_other_clusters_are_refused(folder: Path) -> None:
    np.save("data/predictions.npy", np.zeros((1, 4, 2, 2), np.float16))
    with pytest.raises(
        UserError, match=r"predictions\.npy: has 4 clusters, but .* has 3; run `dvc repro predict`"
    ):
        name_clusters.main([])
    assert (folder / "names.yaml").read_text() == EMPTY
