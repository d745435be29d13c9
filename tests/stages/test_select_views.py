"""`select_views` through its command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import select_views
from stages.core.artefacts import read_metrics

OUTPUTS = ("kept_views.npy", "select_views.json")
ARGV = ["--labels", "labels.safetensors", "--out", OUTPUTS[0], "--metrics", OUTPUTS[1]]


@pytest.fixture
def ready(bench: Any) -> Any:
    bench.write_labels()
    return bench


def test_writes_the_pseudo_labels_of_the_best_views(ready: Any) -> None:
    select_views.main(ARGV)
    kept = np.load(OUTPUTS[0])
    assert (kept.dtype, kept.shape) == (np.int32, (16, 6))
    tensors, _ = ready.tensors("labels.safetensors")
    score, pseudo_label = tensors["score"].numpy(), tensors["pseudo_label"].numpy()
    assert (kept >= 0).sum() == 38  # 40 % of 96, half up
    np.testing.assert_array_equal(kept[kept >= 0], pseudo_label[kept >= 0])
    assert (kept[kept < 0] == -1).all()
    assert score[kept >= 0].min() > score[kept < 0].max()


def test_metrics_describe_what_was_kept(ready: Any) -> None:
    select_views.main(ARGV)
    kept = np.load(OUTPUTS[0]) >= 0
    figures = read_metrics(Path(OUTPUTS[1]))["select_views"]
    tensors, _ = ready.tensors("labels.safetensors")
    assert figures["kept_views"] == 38
    assert figures["guided_images_share"] == pytest.approx(
        sum(any(row) for row in kept.tolist()) / 16, abs=1e-6
    )
    assert figures["lowest_score"] == pytest.approx(float(tensors["score"].numpy()[kept].min()), abs=1e-6)
    shares = [figures["kept_share"][name] for name in ("whole", "top left", "top right", "bottom left")]
    np.testing.assert_allclose(shares, kept.mean(0)[:4], atol=1e-6)
    assert 1 <= figures["effective_clusters"] <= 4


def test_the_same_inputs_give_the_same_bytes(ready: Any) -> None:
    select_views.main(ARGV)
    first = ready.hashes(*OUTPUTS)
    select_views.main(ARGV)
    assert ready.hashes(*OUTPUTS) == first


def test_whole_images_alone(ready: Any) -> None:
    ready.params(select_views__pool="whole", select_ratio=0.5)
    select_views.main(ARGV)
    kept = np.load(OUTPUTS[0]) >= 0
    assert kept[:, 0].sum() == 8
    assert not kept[:, 1:].any()


@pytest.mark.parametrize("scope", ["per_cluster", "per_view"])
def test_scopes(ready: Any, scope: str) -> None:
    ready.params(select_views__scope=scope)
    select_views.main(ARGV)
    kept = np.load(OUTPUTS[0]) >= 0
    pseudo_label = ready.tensors("labels.safetensors")[0]["pseudo_label"].numpy()
    if scope == "per_view":
        assert kept.sum(0).tolist() == [6] * 6  # 40 % of 16, half up
    else:
        for cluster in range(4):
            members = pseudo_label == cluster
            assert kept[members].sum() == int(0.4 * members.sum() + 0.5)


def test_a_ratio_that_keeps_nothing_is_refused(ready: Any) -> None:
    ready.params(select_ratio=0.001)
    message = ready.fault(select_views.main, ARGV)
    assert "select_ratio: 0.001" in message
    assert not Path(OUTPUTS[0]).exists()


def test_missing_labels_end_with_a_message(ready: Any) -> None:
    Path("labels.safetensors").unlink()
    assert ready.fault(select_views.main, ARGV) == (
        "labels.safetensors: not found; run `dvc repro` to make it"
    )
