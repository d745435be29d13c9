"""Confusion, matching and scores against loops and brute force, as PiCIE's protocol defines them (5.1)."""

import itertools
import math

import numpy as np
import pytest

from stages.scoring.colour_baseline import assign_colour_position, fit_colour_position
from stages.scoring.confusion import confusion_matrix, partition_stats, tally, truth_figures
from stages.scoring.metrics import match_by_overlap, score
from stages.scoring.outputs import confusion_table, headline, per_class_table
from stages.settings.errors import UserError
from stages.settings.schema import Evaluate

NAMES = ("sky", "grass", "cow")


def _maps(seed: int, num_classes: int, num_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, num_classes, (5, 7, 7), dtype=np.uint8)
    truth[random.random(truth.shape) < 0.2] = 255
    return truth, random.integers(0, num_clusters, truth.shape, dtype=np.uint8)


@pytest.mark.parametrize(("num_classes", "num_clusters"), [(3, 3), (2, 5), (6, 4)])
def test_confusion_counts_pixel_by_pixel(num_classes: int, num_clusters: int) -> None:
    truth, clusters = _maps(0, num_classes, num_clusters)
    expected = np.zeros((num_classes, num_clusters), int)
    for actual, cluster in zip(truth.ravel().tolist(), clusters.ravel().tolist(), strict=True):
        if actual != 255:
            expected[actual, cluster] += 1
    found = confusion_matrix(truth, clusters, num_classes=num_classes, num_clusters=num_clusters)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int64


def _entropy(clusters: np.ndarray) -> float:
    shares = [(clusters == cluster).mean() for cluster in range(4)]
    return -sum(float(share * np.log(share)) for share in shares if share)


def test_chunks_add_up_and_unlabelled_pixels_count_as_pixels_of_their_cluster() -> None:
    truth, clusters = _maps(1, 3, 4)
    chunks = [(slice(0, 2), clusters[0:2]), (slice(2, 5), clusters[2:5])]
    found = tally(iter(chunks), truth, num_classes=3, num_clusters=4)
    np.testing.assert_array_equal(
        found.confusion, confusion_matrix(truth, clusters, num_classes=3, num_clusters=4)
    )
    assert found.pixels.tolist() == [(clusters == cluster).sum() for cluster in range(4)]
    assert found.pixels.sum() > found.confusion.sum()
    entropies = [_entropy(image) for image in clusters]
    assert found.image_share == pytest.approx(1 - np.mean(entropies) / _entropy(clusters))


def test_figures_of_the_truth_need_two_classes() -> None:
    truth = np.full((2, 4, 4), 255, np.uint8)
    assert truth_figures(truth, 0) == {}
    assert truth_figures(truth, 3) == {}
    truth[0] = 1
    assert truth_figures(truth, 3) == {}, "of one class nothing can be told"
    truth[1] = 2
    assert truth_figures(truth, 3) == pytest.approx({"effective_clusters": 2, "image_share": 1})


def test_ids_out_of_range_are_told() -> None:
    truth, clusters = np.full((1, 2, 2), 3, np.uint8), np.full((1, 2, 2), 4, np.uint8)
    with pytest.raises(UserError, match=r"class id 3, but classes\.csv lists 3 classes"):
        confusion_matrix(truth, clusters, num_classes=3, num_clusters=5)
    with pytest.raises(UserError, match="cluster id 4, but the predictions have 4 clusters"):
        tally(iter([(slice(0, 1), clusters)]), truth, num_classes=0, num_clusters=4)


@pytest.mark.parametrize("num_classes", range(1, 6))
@pytest.mark.parametrize("num_clusters", range(1, 6))
def test_matching_has_the_most_pixels_of_all_matchings(num_classes: int, num_clusters: int) -> None:
    confusion = np.random.default_rng(num_classes * 10 + num_clusters).integers(
        0, 20, (num_classes, num_clusters)
    )
    best = 0
    fewer, more = sorted((num_classes, num_clusters))
    for chosen in itertools.permutations(range(more), fewer):
        pairs = enumerate(chosen) if num_classes <= num_clusters else ((c, k) for k, c in enumerate(chosen))
        best = max(best, sum(int(confusion[c, k]) for c, k in pairs))
    cluster_to_class = match_by_overlap(confusion)
    matched = [(c, k) for k, c in enumerate(cluster_to_class) if c >= 0]
    assert len(matched) == fewer == len({c for c, _ in matched})
    assert sum(int(confusion[pair]) for pair in matched) == best
    assert set(cluster_to_class.tolist()) <= {-1, *range(num_classes)}


def test_six_clusters_by_brute_force() -> None:
    confusion = np.random.default_rng(6).integers(0, 100, (6, 6))
    best = max(sum(confusion[c, k] for c, k in enumerate(p)) for p in itertools.permutations(range(6)))
    classes = match_by_overlap(confusion)
    assert confusion[classes, np.arange(6)].sum() == best


def test_scores_by_hand() -> None:
    # Cluster 0 is class 1, cluster 1 class 0, cluster 2 nobody's.
    confusion = np.array([[2, 6, 2], [8, 0, 2]])
    found = score(confusion, np.array([1, 0, -1]))
    assert found.accuracy == pytest.approx(14 / 20)
    assert found.iou.tolist() == pytest.approx([6 / 10, 8 / 12])
    assert found.recall.tolist() == pytest.approx([0.6, 0.8])
    assert found.miou == pytest.approx((6 / 10 + 8 / 12) / 2)
    assert found.class_accuracy == pytest.approx(0.7)
    assert found.classes_counted == 2


def test_iou_is_null_only_where_it_is_0_of_0() -> None:
    perfect = np.diag([5, 5, 0])
    found = score(perfect, np.arange(3))
    assert math.isnan(found.iou[2])  # absent, and nobody claims to see it
    assert found.miou == 1
    assert found.classes_counted == 2
    hallucinated = perfect + np.array([[0, 0, 5], [0, 0, 0], [0, 0, 0]])
    found = score(hallucinated, np.arange(3))
    assert found.iou.tolist() == [0.5, 1, 0]  # absent, but its cluster is in use
    assert found.miou == pytest.approx(0.5)
    assert math.isnan(found.recall[2])
    assert found.class_accuracy == pytest.approx(0.75)


def test_a_class_without_a_cluster_scores_nothing() -> None:
    confusion = np.array([[5, 0], [0, 5], [3, 0]])
    found = score(confusion, match_by_overlap(confusion))
    assert found.iou.tolist() == [5 / 8, 1, 0]
    assert found.accuracy == pytest.approx(10 / 13)


def test_no_labelled_pixel_is_null_and_not_zero() -> None:
    found = tally(
        iter([(slice(0, 1), np.zeros((1, 2, 2), np.uint8))]),
        np.full((1, 2, 2), 255),
        num_classes=2,
        num_clusters=2,
    )
    figures = headline(found, match_by_overlap(found.confusion))
    assert figures["accuracy"] is None
    assert figures["miou"] is None
    assert figures["classes_counted"] == 0


def test_partition_figures_have_closed_forms() -> None:
    assert partition_stats(np.array([5, 5, 5, 5]), None) == pytest.approx(
        {"clusters_used": 4, "effective_clusters": 4.0, "largest_cluster_share": 0.25}
    )
    assert partition_stats(np.array([0, 9, 0]), None) == pytest.approx(
        {"clusters_used": 1, "effective_clusters": 1.0, "largest_cluster_share": 1.0}
    )
    figures = partition_stats(np.array([1, 2, 1, 0]), None)
    assert figures["effective_clusters"] == pytest.approx(2 ** (0.25 * 2 + 0.5 * 1 + 0.25 * 2))


def test_tables_name_clusters_by_their_class() -> None:
    confusion = np.array([[0, 7, 0, 0], [4, 0, 1, 0], [0, 0, 0, 0]])
    cluster_to_class = np.array([1, 0, -1, 2])
    per_class = per_class_table(NAMES, confusion, cluster_to_class, score(confusion, cluster_to_class))
    assert per_class.to_dict("list") == {
        "class": ["sky", "grass", "cow"],
        "cluster": [1, 0, 3],
        "iou": [1.0, 0.8, ""],
        "accuracy": [1.0, 0.8, ""],
        "pixels": [7, 5, 0],
    }
    table = confusion_table(NAMES, confusion, cluster_to_class)
    assert table["predicted"].tolist()[:4] == ["sky", "grass", "cow", "cluster 2"]
    assert table["pixels"].tolist() == [7, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0, 0]
    assert table["actual"].tolist() == ["sky"] * 4 + ["grass"] * 4 + ["cow"] * 4


BASELINE = Evaluate(baseline_images=256, baseline_grid=32, baseline_iterations=50, baseline_restarts=2)


def test_colour_baseline_finds_flat_colours_and_repeats_itself() -> None:
    images = np.zeros((6, 16, 16, 3), np.uint8)
    images[:, :, 8:] = 255, 40, 40
    centroids = fit_colour_position(images, BASELINE, num_clusters=2, seed=3)
    np.testing.assert_array_equal(centroids, fit_colour_position(images, BASELINE, num_clusters=2, seed=3))
    ((rows, clusters),) = assign_colour_position(images, centroids)
    assert (rows, clusters.shape) == (slice(0, 6), (6, 16, 16))
    left, right = clusters[0, 0, 0], clusters[0, 0, 15]
    assert left != right
    np.testing.assert_array_equal(clusters, np.where(np.arange(16) < 8, left, right) * np.ones_like(clusters))


@pytest.mark.parametrize("chunks", [[slice(0, 5)], [slice(0, 2), slice(2, 4), slice(4, 5)]])
def test_colour_baseline_assigns_to_the_nearest_of_five_coordinates(
    chunks: list[slice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.scoring.colour_baseline.CHUNK_PIXELS", chunks[0].stop * 5 * 5)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5, 5, 5, 3), dtype=np.uint8)
    centroids = random.random((4, 5)).astype(np.float32)
    found = list(assign_colour_position(images, centroids))
    assert [rows for rows, _ in found] == chunks
    clusters = np.concatenate([part for _, part in found])
    for image, row, column in itertools.product(range(5), repeat=3):
        feature = np.array([*(images[image, row, column] / 255), (row + 0.5) / 5, (column + 0.5) / 5])
        assert clusters[image, row, column] == ((centroids - feature) ** 2).sum(1).argmin()
