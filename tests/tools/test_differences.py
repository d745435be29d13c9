"""What `compare` puts side by side, on runs that are made up."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from stages.dataset.truth import UNMATCHED
from stages.reporting.legend import Legend
from stages.reporting.names import Names
from stages.tools.differences import cluster_rows, in_order, score_differences, sizes_heading


def _run(names: dict[int, str], refined: list[int]) -> Any:
    """Three clusters, of which cluster 0 matches the class sky."""
    legend = Legend(("sky",), np.array([0, UNMATCHED, UNMATCHED]), Names(names))
    return SimpleNamespace(
        legend=legend, split=SimpleNamespace(refined=np.array(refined, np.uint8).reshape(1, 2, 2))
    )


def test_a_given_name_and_a_class_of_the_same_name_are_added_up() -> None:
    rows = cluster_rows(_run({2: "sky"}, [0, 0, 1, 2]), _run({}, [0, 1, 1, 2]))
    assert rows[0] == ("sky", "75.0", "25.0", "-50.0")
    assert sum(float(first) for _, first, _, _ in rows) == 100


def test_clusters_are_not_compared_by_their_numbers() -> None:
    rows = cluster_rows(_run({2: "road"}, [0, 1, 1, 2]), _run({}, [1, 2, 2, 2]))
    assert sorted(rows) == [
        ("clusters without a name", "50.0", "100.0", "+50.0"),
        ("road", "25.0", "0.0", "-25.0"),
        ("sky", "25.0", "0.0", "-25.0"),
    ]


def _scored(accuracy: float, *, has_crf: bool) -> Any:
    """A run whose prediction has this accuracy, and 10 points more after the CRF if it has one."""
    metrics = {"raw": {"accuracy": accuracy}, "refined": {"accuracy": accuracy + 0.1 * has_crf}}
    return SimpleNamespace(metrics=metrics, split=SimpleNamespace(has_crf=has_crf))


def test_a_run_without_a_crf_has_no_scores_after_it() -> None:
    with_crf, without = _scored(0.5, has_crf=True), _scored(0.25, has_crf=False)
    raw = "prediction: pixel accuracy"
    refined = "prediction + CRF: pixel accuracy"
    assert score_differences(with_crf, with_crf) == [
        (raw, "50.0", "50.0", "+0.0"),
        (refined, "60.0", "60.0", "+0.0"),
    ]
    assert score_differences(with_crf, without) == [
        (raw, "50.0", "25.0", "-25.0"),
        (refined, "60.0", "–", "–"),
    ]
    assert score_differences(without, with_crf) == [
        (raw, "25.0", "50.0", "+25.0"),
        (refined, "–", "60.0", "–"),
    ]
    assert score_differences(without, without) == [(raw, "25.0", "25.0", "+0.0")]


def test_sizes_are_said_to_be_after_the_crf_only_where_there_is_one() -> None:
    with_crf, without = _scored(0.5, has_crf=True), _scored(0.25, has_crf=False)
    assert sizes_heading(with_crf, with_crf) == "percent of the pixels, after the CRF"
    assert sizes_heading(with_crf, without) == "percent of the pixels, after the CRF where there is one"
    assert sizes_heading(without, without) == "percent of the pixels"


def test_pairs_keep_their_order_without_truth() -> None:
    shots = [SimpleNamespace(name=str(place), score=score) for place, score in enumerate((0.5, 0.5))]
    others = [SimpleNamespace(name=str(place), score=score) for place, score in enumerate((0.5, 0.9))]
    kept: Any = in_order(shots, others, has_truth=False)  # type: ignore[arg-type]
    assert [one.name for one, _ in kept] == ["0", "1"]
    by_change: Any = in_order(shots, others, has_truth=True)  # type: ignore[arg-type]
    assert [one.name for one, _ in by_change] == ["1", "0"]
