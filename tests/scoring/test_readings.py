"""Things and stuff in five readings, and absent classes, against counting pixel by pixel (5.1)."""

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest

from stages.scoring.confusion import Counted
from stages.scoring.metrics import ABSENT_RULES, match_by_majority, match_by_overlap, score
from stages.scoring.readings import READINGS, Matched, as_json, as_table, in_words, whole_score

# Rows are classes in the order of things and stuff, columns the clusters that they are matched with.
IN_CLASS_ORDER = np.array([[40, 10, 50, 0], [10, 30, 0, 60], [0, 0, 90, 10], [20, 0, 10, 170]])
CLUSTER_TO_CLASS = [1, 3, 0, 2]
CONFUSION = IN_CLASS_ORDER[:, CLUSTER_TO_CLASS]
KINDS = ("thing", "thing", "stuff", "stuff")
THINGS, STUFF = np.array([0, 1]), np.array([2, 3])
BY_HAND = {  # accuracy and IoU of each class
    ("truth_and_prediction", "things"): (70 / 90, [40 / 60, 30 / 50]),
    ("truth_alone", "things"): (70 / 200, [40 / 110, 30 / 110]),
    ("own_matching", "things"): (110 / 200, [50 / 100, 60 / 100]),
    ("averaged", "things"): (70 / 200, [40 / 130, 30 / 110]),
    ("legacy_picie", "things"): (200 / 260, [30 / 90, 170 / 230]),  # of classes 1 and 3
    ("truth_and_prediction", "stuff"): (260 / 280, [90 / 110, 170 / 190]),
    ("truth_alone", "stuff"): (260 / 300, [90 / 110, 170 / 210]),
    ("own_matching", "stuff"): (260 / 300, [90 / 110, 170 / 210]),
    ("averaged", "stuff"): (260 / 300, [90 / 160, 170 / 270]),
    ("legacy_picie", "stuff"): (130 / 180, [40 / 90, 90 / 140]),  # of classes 0 and 2
}

Pixel = tuple[int, int]  # class, class that its cluster stands for


def _matched(confusion: np.ndarray, matched_on: np.ndarray, kinds: tuple[str, ...] = KINDS) -> Matched:
    return Matched(Counted(confusion, matched_on, ("",) * len(confusion), kinds), match_by_overlap)


def _pixels(confusion: np.ndarray, cluster_to_class: Iterable[int]) -> list[Pixel]:
    classes = list(cluster_to_class)
    return [
        (actual, classes[cluster])
        for actual, cluster in np.ndindex(*confusion.shape)
        for _ in range(confusion[actual, cluster])
    ]


def _counted(pixels: list[Pixel], scored: Iterable[int]) -> tuple[float, list[float]]:
    """Accuracy and IoUs by looking at each pixel."""
    classes = list(scored)
    of_them = [pixel for pixel in pixels if pixel[0] in classes]
    right = sum(actual == predicted for actual, predicted in of_them)
    ious = []
    for class_id in classes:
        both = sum(actual == predicted == class_id for actual, predicted in pixels)
        either = sum(class_id in pixel for pixel in pixels)
        ious.append(both / either if either else math.nan)
    return (right / len(of_them) if of_them else math.nan), ious


def _best(confusion: np.ndarray) -> tuple[int, ...]:
    """One-to-one by trying all: the matching with the most pixels, which has to be the only one."""
    num_classes, num_clusters = confusion.shape
    places = [*range(num_clusters), *[num_clusters] * max(0, num_classes - num_clusters)]
    choices = set(itertools.permutations(places, num_classes))
    pixels = {
        choice: sum(confusion[c, k] for c, k in enumerate(choice) if k < num_clusters) for choice in choices
    }
    most = max(pixels.values())
    (chosen,) = (choice for choice in choices if pixels[choice] == most)
    return tuple(chosen.index(cluster) if cluster in chosen else -1 for cluster in range(num_clusters))


def _oracle(reading: str, confusion: np.ndarray, members: np.ndarray) -> tuple[float, list[float]]:
    scored, matching = members.tolist(), _best(confusion)
    pixels = _pixels(confusion, matching)
    if reading == "averaged":
        return _counted(pixels, scored)
    if reading == "own_matching":
        own = [-1 if place == -1 else scored[place] for place in _best(confusion[members])]
        return _counted([pixel for pixel in _pixels(confusion, own) if pixel[0] in scored], scored)
    if reading == "legacy_picie":
        # A class takes the number of its cluster, and a cluster keeps its own.
        cluster_of = {class_id: cluster for cluster, class_id in enumerate(matching)}
        pixels = [
            (cluster_of[actual], cluster) for actual, cluster in _pixels(confusion, range(len(matching)))
        ]
    of_truth = [pixel for pixel in pixels if pixel[0] in scored]
    if reading == "truth_alone":
        return _counted(of_truth, scored)
    return _counted([pixel for pixel in of_truth if pixel[1] in (*scored, -1)], scored)


@pytest.mark.parametrize(("reading", "partition"), BY_HAND)
def test_readings_by_hand(reading: str, partition: str) -> None:
    matched = _matched(CONFUSION, CONFUSION)
    assert matched.cluster_to_class.tolist() == CLUSTER_TO_CLASS
    found = READINGS[reading](matched, {"things": THINGS, "stuff": STUFF}[partition])
    accuracy, iou = BY_HAND[reading, partition]
    assert found is not None
    assert found.accuracy == pytest.approx(accuracy)
    assert found.iou.tolist() == pytest.approx(iou)
    assert found.miou == pytest.approx(sum(iou) / 2)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(("num_classes", "num_clusters"), [(4, 4), (5, 5), (3, 5), (5, 3)])
def test_readings_pixel_by_pixel(reading: str, num_classes: int, num_clusters: int) -> None:
    random = np.random.default_rng(num_classes * 10 + num_clusters)
    for _ in range(6):
        confusion = random.integers(0, 200, (num_classes, num_clusters))  # no two matchings tie
        members = np.sort(random.choice(num_classes, random.integers(1, num_classes), replace=False))
        found = READINGS[reading](_matched(confusion, confusion), members)
        if reading == "legacy_picie" and num_classes != num_clusters:
            assert found is None
            continue
        accuracy, iou = _oracle(reading, confusion, members)
        assert found is not None
        np.testing.assert_allclose([found.accuracy, *found.iou], [accuracy, *iou])


def test_the_matching_of_the_raw_prediction_decides_for_the_crf() -> None:
    refined = np.roll(CONFUSION, 1, axis=1)
    matched = _matched(refined, CONFUSION)
    for reading in ("truth_alone", "averaged"):
        found = READINGS[reading](matched, THINGS)
        assert found is not None
        right = sum(refined[c, k] for k, c in enumerate(CLUSTER_TO_CLASS) if c in THINGS)
        assert found.accuracy == pytest.approx(right / 200)
    own = READINGS["own_matching"](matched, THINGS)  # of the raw: class 0 has cluster 3, class 1 cluster 1
    assert own is not None
    assert own.accuracy == pytest.approx((refined[0, 3] + refined[1, 1]) / 200)


def test_legacy_picie_moves_with_the_numbers_of_the_clusters_and_nothing_else_does() -> None:
    figures = {reading: set() for reading in READINGS}
    for order in itertools.permutations(range(4)):
        renamed = CONFUSION[:, order]
        for reading, read in READINGS.items():
            found = read(_matched(renamed, renamed), THINGS)
            assert found is not None
            figures[reading].add(round(found.miou, 9))
    assert {reading: len(values) for reading, values in figures.items()} == {
        **dict.fromkeys(READINGS, 1),
        "legacy_picie": 6,
    }


def test_majority_gives_every_cluster_the_class_of_most_of_its_pixels() -> None:
    confusion = np.array([[5, 1, 3, 0], [2, 1, 9, 0]])
    assert match_by_majority(confusion).tolist() == [
        0,
        0,
        1,
        -1,
    ]  # a tie to the lower id; an empty one to none
    found = score(confusion, match_by_majority(confusion))
    assert found.accuracy == pytest.approx((5 + 1 + 9) / 21)
    assert found.iou.tolist() == pytest.approx([6 / (9 + 9 - 6), 9 / (12 + 12 - 9)])
    assert match_by_majority(np.zeros((0, 3), int)).tolist() == [-1, -1, -1]


def test_rules_for_absent_classes() -> None:
    # Class 2 is absent though cluster 2 claims to see it; class 3 is absent and nobody claims to.
    confusion = np.diag([6, 9, 0, 0])
    confusion[0, 2] = 3
    found = score(confusion, np.arange(4))
    assert {rule: found.miou_by(rule) for rule in ABSENT_RULES} == pytest.approx(
        {
            "skip_unpredicted": (6 / 9 + 1 + 0) / 3,
            "skip_absent": (6 / 9 + 1) / 2,
            "zero": (6 / 9 + 1 + 0 + 0) / 4,
            "one": (6 / 9 + 1 + 0 + 1) / 4,
        }
    )
    assert [len(found.counted_iou(rule)) for rule in ABSENT_RULES] == [3, 2, 4, 4]
    assert found.miou == found.miou_by("skip_unpredicted")


def test_the_whole_score_in_a_table_and_in_groups() -> None:
    entries = whole_score(_matched(CONFUSION, CONFUSION))
    table = as_table(entries)
    assert table["score"].tolist() == [
        "all · overall",
        *(f"{part} · {reading}" for part in ("things", "stuff") for reading in READINGS),
    ]
    assert table["accuracy"].tolist()[0] == 0.66
    assert set(table["classes_counted"][1:]) == {2}
    content = as_json(entries, CONFUSION)
    assert list(content) == ["num_classes", "num_clusters", "labelled_pixels", "one_to_one"]
    assert (content["num_classes"], content["num_clusters"], content["labelled_pixels"]) == (4, 4, 500)
    groups = content["one_to_one"]
    assert list(groups) == ["all", "absent_classes", "things", "stuff"]
    assert list(groups["things"]) == list(READINGS)
    assert groups["things"]["own_matching"] == pytest.approx(
        {"accuracy": 0.55, "miou": 0.55, "classes_counted": 2}
    )
    assert groups["absent_classes"]["zero"]["classes_counted"] == 4


def test_many_to_one_is_told_where_there_are_more_clusters_than_classes() -> None:
    confusion = np.array([[5, 1, 3], [2, 1, 9]])
    entries = whole_score(_matched(confusion, confusion, ("thing", "stuff")))
    table = as_table(entries).set_index("score")
    assert table.loc["all · overall", "accuracy"] == pytest.approx(14 / 21, abs=1e-6)
    assert table.loc["all · overall · many_to_one", "accuracy"] == pytest.approx(15 / 21, abs=1e-6)
    assert not [name for name in table.index if "legacy_picie" in name]
    told = in_words("raw", entries, confusion)
    assert "clusters without a class in one_to_one: 1; their pixels count as errors" in told
    assert "legacy_picie is defined only for equal numbers of clusters and classes" in told


def test_fewer_clusters_than_classes_are_told() -> None:
    confusion = np.array([[5, 0], [0, 5], [3, 0]])
    entries = whole_score(_matched(confusion, confusion, ("", "", "")))
    assert [entry[:3] for entry in entries] == [("one_to_one", "all", "overall")]
    told = in_words("raw", entries, confusion)
    assert "classes without a cluster: 1; their IoU and accuracy are 0 if they occur" in told


def test_a_kind_that_nobody_is_has_no_lines() -> None:
    entries = whole_score(_matched(CONFUSION, CONFUSION, ("stuff", "", "stuff", "")))
    assert {entry.classes for entry in entries} == {"all", "stuff"}
    assert whole_score(_matched(np.zeros((0, 3), int), np.zeros((0, 3), int), ())) == []


def test_what_is_printed_is_in_per_cent() -> None:
    told = in_words("raw", whole_score(_matched(CONFUSION, CONFUSION)), CONFUSION).splitlines()
    assert told[0] == "raw: 4 classes, 4 clusters, 500 labeled pixels; in percent"
    assert told[2].split() == ["one_to_one", "all", "overall", "66.00", "61.25", "44.31", "4"]
    assert told[3].split()[:4] == ["one_to_one", "things", "truth_and_prediction", "77.78"]
    assert (
        told[-4] == "  skip_unpredicted (excluded if no pixel is assigned to it, else 0): 44.31 of 4 classes"
    )
