"""What holds for the scores of any prediction."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.imaging.palette import colourise, palette
from stages.scoring.confusion import confusion_matrix
from stages.scoring.matching import match_by_overlap
from stages.scoring.metrics import score
from stages.scoring.partition_stats import partition_stats

SIDES = st.tuples(st.integers(1, 6), st.integers(1, 6))
CONFUSIONS = SIDES.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 50)))


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
@given(
    arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 1000)).filter(lambda pixels: pixels.any())
)
def test_effective_clusters_lie_between_one_and_those_in_use(pixels: np.ndarray) -> None:
    figures = partition_stats(pixels)
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
