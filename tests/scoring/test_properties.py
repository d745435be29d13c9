"""What holds for the scores of any prediction."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.reporting.palette import colourise, palette
from stages.scoring.confusion import Counted, confusion_matrix, partition_stats
from stages.scoring.metrics import Matcher, match_by_majority, match_by_overlap, score
from stages.scoring.readings import READINGS, Matched, whole_score

SIDES = st.tuples(st.integers(1, 6), st.integers(1, 6))
CONFUSIONS = SIDES.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 50)))


def _matched(confusion: np.ndarray, matcher: Matcher, kinds: tuple[str, ...] = ()) -> Matched:
    return Matched(Counted(confusion, confusion, (), kinds), matcher)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), SIDES)
def test_confusion_holds_every_labelled_pixel_once(seed: int, sides: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    truth = random.choice([*range(sides[0]), 255], 60).astype(np.uint8)
    clusters = random.integers(0, sides[1], 60, dtype=np.uint8)
    confusion = confusion_matrix(truth, clusters, num_classes=sides[0], num_clusters=sides[1])
    assert confusion.sum() == (truth != 255).sum()
    assert (confusion >= 0).all()


@settings(deadline=None)
@given(CONFUSIONS)
def test_matching_is_one_to_one_and_as_large_as_can_be(confusion: np.ndarray) -> None:
    classes = match_by_overlap(confusion)
    used = classes[classes >= 0]
    assert len(set(used.tolist())) == len(used) == min(confusion.shape)


@settings(deadline=None)
@given(CONFUSIONS, st.randoms(use_true_random=False))
def test_matching_is_never_below_another_matching(confusion: np.ndarray, random) -> None:
    chosen = min(confusion.shape)
    rows = random.sample(range(confusion.shape[0]), chosen)
    columns = random.sample(range(confusion.shape[1]), chosen)
    classes = match_by_overlap(confusion)
    clusters = np.flatnonzero(classes >= 0)
    assert confusion[classes[clusters], clusters].sum() >= confusion[rows, columns].sum()


@settings(deadline=None)
@given(CONFUSIONS, st.randoms(use_true_random=False))
def test_renaming_clusters_leaves_the_accuracy(confusion: np.ndarray, random) -> None:
    order = random.sample(range(confusion.shape[1]), confusion.shape[1])
    renamed = confusion[:, order]
    before, after = score(confusion, match_by_overlap(confusion)), score(renamed, match_by_overlap(renamed))
    np.testing.assert_equal(before.accuracy, after.accuracy)


@settings(deadline=None)
@given(CONFUSIONS)
def test_scores_are_fractions_and_iou_is_never_above_recall(confusion: np.ndarray) -> None:
    found = score(confusion, match_by_overlap(confusion))
    for values in (found.iou, found.recall):
        known = values[np.isfinite(values)]
        assert ((known >= 0) & (known <= 1)).all()
    both = np.isfinite(found.iou) & np.isfinite(found.recall)
    assert (found.iou[both] <= found.recall[both]).all()
    assert found.classes_counted <= len(confusion)


@settings(deadline=None)
@given(CONFUSIONS, st.data())
def test_things_and_stuff_make_up_the_whole(confusion: np.ndarray, data) -> None:
    kinds = tuple(data.draw(st.sampled_from(["thing", "stuff"])) for _ in confusion)
    found = {entry[:3]: entry.scores for entry in whole_score(_matched(confusion, match_by_overlap, kinds))}
    for matching in {key[0] for key in found}:
        parts = [part for part in ("things", "stuff") if (matching, part, "averaged") in found]
        averaged = [found[matching, part, "averaged"] for part in parts]
        overall = found[matching, "all", "overall"]
        iou = np.concatenate([scores.iou for scores in averaged])
        np.testing.assert_allclose(np.sort(iou), np.sort(overall.iou))
        assert sum(scores.classes_counted for scores in averaged) == overall.classes_counted
        weights = [
            confusion[[kind == part.rstrip("s") for kind in kinds]].sum() for part in parts
        ]  # thing(s), stuff
        right = sum(
            scores.accuracy * weight for scores, weight in zip(averaged, weights, strict=True) if weight
        )
        assert not confusion.any() or np.isclose(right / confusion.sum(), overall.accuracy)


@settings(deadline=None)
@given(CONFUSIONS, st.data())
def test_readings_are_ordered_as_their_names_say(confusion: np.ndarray, data) -> None:
    count = data.draw(st.integers(1, len(confusion)))
    members = np.sort(data.draw(st.permutations(range(len(confusion))))[:count])
    matched = _matched(confusion, match_by_overlap)
    found = {reading: read(matched, np.array(members)) for reading, read in READINGS.items()}
    within, alone, own, averaged = (
        found[reading] for reading in ("truth_and_prediction", "truth_alone", "own_matching", "averaged")
    )
    np.testing.assert_equal(alone.accuracy, averaged.accuracy)
    if confusion[members].any():
        assert own.accuracy >= alone.accuracy
        assert np.isnan(within.accuracy) or within.accuracy >= alone.accuracy
    # Fewer pixels beside those that agree: no IoU is lower, where it exists.
    for more, less in ((alone, averaged), (within, alone)):
        known = np.isfinite(more.iou) & np.isfinite(less.iou)
        assert (more.iou[known] >= less.iou[known] - 1e-12).all()


@settings(deadline=None)
@given(CONFUSIONS)
def test_over_all_classes_the_readings_are_one(confusion: np.ndarray) -> None:
    everything = np.arange(len(confusion))
    for matcher in (match_by_overlap, match_by_majority):
        matched = _matched(confusion, matcher)
        overall = score(confusion, matched.cluster_to_class)
        for reading, read in READINGS.items():
            scores = read(matched, everything)
            assert scores is not None or reading == "legacy_picie"
            if scores is not None:
                np.testing.assert_equal(scores.accuracy, overall.accuracy)
                np.testing.assert_allclose(np.sort(scores.iou), np.sort(overall.iou))


@settings(deadline=None)
@given(CONFUSIONS)
def test_many_to_one_is_never_below_one_to_one(confusion: np.ndarray) -> None:
    one, many = (score(confusion, match(confusion)) for match in (match_by_overlap, match_by_majority))
    assert not confusion.any() or many.accuracy >= one.accuracy
    for scores in (one, many):
        if np.isfinite(scores.miou):
            assert scores.miou_by("zero") <= scores.miou + 1e-12
            assert scores.miou_by("zero") <= scores.miou_by("one")
            assert scores.miou <= min(1.0, scores.miou_by("one")) + 1e-12


@settings(deadline=None)
@given(
    arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 1000)).filter(lambda pixels: pixels.any())
)
def test_effective_clusters_lie_between_one_and_those_in_use(pixels: np.ndarray) -> None:
    figures = partition_stats(pixels, None)
    assert 1 - 1e-9 <= figures["effective_clusters"] <= figures["clusters_used"] + 1e-9
    assert 1 / figures["clusters_used"] <= figures["largest_cluster_share"] + 1e-9


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 255))
def test_palette_colours_are_distinct_and_a_longer_one_begins_with_a_shorter(count: int) -> None:
    colours = palette(count)
    assert colours.shape == (count, 3)
    assert len({tuple(colour) for colour in colours.tolist()} | {(128, 128, 128)}) == count + 1
    np.testing.assert_array_equal(palette(255)[:count], colours)


def test_ignored_pixels_are_grey() -> None:
    picture = colourise(np.array([[0, 1], [255, 2]], np.uint8), palette(3))
    np.testing.assert_array_equal(picture[0, 0], palette(3)[0])
    np.testing.assert_array_equal(picture[1, 1], palette(3)[2])
    assert picture[1, 0].tolist() == [128, 128, 128]
