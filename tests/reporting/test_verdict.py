"""The verdict: each sign of a bad run is found beyond its limit, with a remedy, and not before it."""

import copy
from typing import Any

import pandas as pd
import pytest

from stages.reporting.evidence import Evidence, Finding
from stages.reporting.verdict import verdict
from stages.settings.schema import WeakLabels

WEAK = WeakLabels(stability_below=0.3, position_above=0.3, order_above=0.3, used_below=0.3)
METRICS: dict[str, dict[str, float | None]] = {
    "raw": {"accuracy": 0.5, "miou": 0.3, "effective_clusters": 9.0, "clusters_used": 10, "image_share": 0.5},
    "refined": {"accuracy": 0.52, "miou": 0.31, "effective_clusters": 9.0, "image_share": 0.5},
    "colour_position": {"accuracy": 0.2, "miou": 0.1, "effective_clusters": 10.0, "image_share": 0.1},
    "truth": {"image_share": 0.45},
}
LABEL = {
    "stability": 0.8,
    "effective_clusters": 15.0,
    "agreement_with_position": 0.1,
    "agreement_with_order": 0.1,
}
GOOD = {
    "metrics": METRICS,
    "per_class": pd.DataFrame({"class": ["sky", "cow"], "iou": [0.5, 0.06], "pixels": [100, 50]}),
    "label": LABEL,
    "data": {"train_images": 1000, "val_images": 100, "warnings": []},
    "num_clusters": 11,
    "global_k": 20,
    "guidance": 0.1,
    "parts_guide": True,
    "balance": "none",
    "trains": True,
    "is_published": False,
    "weak": WEAK,
    "collapse_below": 0.2,
}


def _verdict(**changes: Any) -> list[Finding]:
    """The verdict on a good run with changes; dotted keys, written with __, go into its tables."""
    given = copy.deepcopy(GOOD)
    for key, value in changes.items():
        *path, last = key.split("__")
        table: Any = given
        for part in path:
            table = table[part]
        table[last] = value
    return verdict(Evidence(**given))


def _wrong(**changes: Any) -> list[Finding]:
    return [finding for finding in _verdict(**changes) if finding.kind == "wrong"]


def test_a_good_run_has_good_findings_alone() -> None:
    found = _verdict()
    assert {finding.kind for finding in found} == {"good"}
    assert [finding.text for finding in found] == [
        "Against k-means on color and position, which uses no network, the prediction is 30.0 points of "
        "accuracy ahead and 20.0 points of mIoU ahead.",
        "Effectively 9.0 of 11 clusters are in use.",
        "Clusters do not follow whole images: 50 % of a pixel's cluster can be told from its image alone; of "
        "its true class, 45 %.",
        "The pseudo-labels, which guide training, show no sign of weakness.",
    ]


SIGNS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (
        {"metrics__raw__accuracy": 0.19, "metrics__refined__accuracy": 0.19},
        {"metrics__raw__accuracy": 0.26, "metrics__refined__accuracy": 0.26},
        "1.0 points of accuracy behind",
        "pretrain.epochs",
    ),
    ({"metrics__raw__miou": 0.11}, {"metrics__raw__miou": 0.13}, "Another seed", "pretrain.init"),
    ({"metrics__raw__miou": 0.1}, {}, "0.0 points of mIoU behind", "add photographs"),
    (
        {"metrics__raw__effective_clusters": 2.9},
        {"metrics__raw__effective_clusters": 3.1},  # (3 - 1) / (11 - 1) is the limit
        "The clusters have collapsed: effectively 2.9 of 11 clusters are in use.",
        "train.pixel_loss.balance: inverse",
    ),
    (
        # Of classes that are effectively 1.2, half of 0.2 is the least.
        {"metrics__raw__effective_clusters": 1.05, "metrics__truth__effective_clusters": 1.2},
        {"metrics__raw__effective_clusters": 1.15, "metrics__truth__effective_clusters": 1.2},
        "The clusters have collapsed: effectively 1.1 of 11 clusters are in use.",
        "train.pixel_loss.balance: inverse",
    ),
    (
        {"metrics__raw__effective_clusters": 2.9, "metrics__truth__effective_clusters": 10.0},
        {"metrics__raw__effective_clusters": 3.1, "metrics__truth__effective_clusters": 10.0},
        "The clusters have collapsed: effectively 2.9 of 11",
        "lower train.lr",
    ),
    (
        {"metrics__raw__image_share": 0.66},
        {"metrics__raw__image_share": 0.64},
        "Clusters follow whole images instead of what is in them: 66 %",
        "Lower train.image_loss.weight",
    ),
    (
        {"metrics__refined__accuracy": 0.48},
        {"metrics__refined__accuracy": 0.495},
        "The CRF costs 2.0 points",
        "refine.",
    ),
    (
        {
            "per_class": pd.DataFrame(
                {"class": ["sky", "cow", "car"], "iou": [0.5, 0.04, ""], "pixels": [9, 9, 0]}
            )
        },
        {"per_class": pd.DataFrame({"class": ["sky", "cow"], "iou": [0.5, ""], "pixels": [9, 0]})},
        "1 of 2 classes not found: cow.",
        "pixel_k",
    ),
    (
        {"label__agreement_with_order": 0.31},
        {"label__agreement_with_order": 0.3},
        "follow the order of the files (0.31;",
        "global_k",
    ),
    (
        {"label__agreement_with_position": 0.31},
        {"label__agreement_with_position": 0.3},
        "follow the position of a view in its image (0.31;",
        "select_views.pool: whole",
    ),
    ({"label__stability": 0.29}, {"label__stability": 0.3}, "not stable", "Pretrain longer"),
    (
        {"label__effective_clusters": 5.9},
        {"label__effective_clusters": 6.0},
        "only 5.9 of 20 pseudo-labels",
        "label.centres: kmeans",
    ),
    ({"data__train_images": 399}, {"data__train_images": 400}, "only 399 photographs", "Add photographs"),
    (
        {"metrics__raw__effective_clusters": 2.9, "data__val_images": 11},
        {"metrics__raw__effective_clusters": 2.9, "data__val_images": 10},  # fewer than there are clusters
        "The clusters have collapsed",
        "train.lr",
    ),
    ({"data__warnings": ["two are alike"]}, {}, "Check the data: two are alike.", ""),
    ({"unused_names": "names.yaml: old"}, {}, "The given names are not used. names.yaml: old.", ""),
]


@pytest.mark.parametrize(("bad", "bearable", "text", "remedy"), SIGNS, ids=[text for _, _, text, _ in SIGNS])
def test_what_is_wrong_is_found_beyond_its_limit(
    bad: dict[str, Any], bearable: dict[str, Any], text: str, remedy: str
) -> None:
    (found,) = _wrong(**bad)
    assert text in found.text
    assert remedy in found.remedy
    assert bool(found.remedy) == bool(remedy)
    assert _wrong(**bearable) == []


def test_what_is_wrong_comes_first() -> None:
    kinds = [finding.kind for finding in _verdict(data__val_images=10, label__stability=0.1)]
    assert kinds == ["wrong", "note", "good", "good", "good"]


def test_without_truth_it_says_that_nothing_is_scored() -> None:
    free = {"effective_clusters": 9.0, "clusters_used": 10, "image_share": 0.5}
    found = _verdict(
        metrics={"raw": free, "refined": free, "colour_position": free},
        per_class=pd.DataFrame({"class": [], "iou": [], "pixels": []}),
    )
    assert [finding.kind for finding in found] == ["note", "note", "good", "good"]
    assert found[0].text.startswith("No validation pixel has a label")
    assert found[1].text.startswith(
        "50 % of a pixel's cluster can be told from its image alone. This is right if"
    )
    assert "lower train.image_loss.weight" in found[1].remedy


def test_label_maps_of_ignored_pixels_alone_are_not_called_absent() -> None:
    found = _verdict(metrics__raw__accuracy=None, metrics__raw__miou=None)
    texts = [finding.text for finding in found]
    assert any(text.startswith("No validation pixel has a label") for text in texts)


@pytest.mark.parametrize("change", [{"data__val_images": 1}, {"metrics__raw__clusters_used": 1}])
def test_one_image_or_one_cluster_says_nothing_of_images(change: dict[str, Any]) -> None:
    assert not [finding for finding in _verdict(**change) if "image alone" in finding.text]


def test_no_remedy_is_what_was_done_already() -> None:
    behind = {"metrics__raw__miou": 0.1}
    (found,) = _wrong(**behind, trains=False)
    assert found.remedy == "Start from a published model (pretrain.init) or add photographs."
    (found,) = _wrong(**behind, trains=False, is_published=True)
    assert found.remedy == "Add photographs."
    assert _wrong(data__train_images=50, is_published=True) == []
    (found,) = _wrong(metrics__raw__image_share=0.66, guidance=0.0)
    assert "image_loss" not in found.remedy


def test_no_remedy_is_one_that_cannot_be_taken() -> None:
    """Without pretraining, with k-means already, and without guidance."""
    (found,) = [one for one in _verdict(trains=False, label__stability=0.1) if "not stable" in one.text]
    assert found.remedy == "Lower global_k."
    weak = _verdict(trains=False, label__effective_clusters=1.0, label__centres="kmeans")
    (found,) = [one for one in weak if "are in use" in one.text and "pseudo-labels" in one.text]
    assert found.remedy == "Lower global_k."
    collapsed = _verdict(trains=False, guidance=0.0, metrics__raw__effective_clusters=1.0)
    (found,) = [one for one in collapsed if "collapsed" in one.text]
    assert found.remedy == "Set train.pixel_loss.balance: inverse or lower train.lr."
    collapsed = _verdict(balance="inverse", metrics__raw__effective_clusters=1.0)
    (found,) = [one for one in collapsed if "collapsed" in one.text]
    assert found.remedy == "Lower train.lr or pretrain longer."


def test_the_position_of_views_is_no_fault_where_whole_images_guide() -> None:
    assert _wrong(parts_guide=False, label__agreement_with_position=0.9) == []


def test_pseudo_labels_without_guidance_do_not_matter() -> None:
    assert _wrong(guidance=0.0, label__stability=0.1, label__agreement_with_order=0.9) == []
