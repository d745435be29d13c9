"""Usage of clusters against its definitions, and the image share against scikit-learn's homogeneity."""

import numpy as np
import pytest
from sklearn.metrics import homogeneity_score

from stages.clustering.usage import clusters_by_image, effective_clusters, image_share


def test_effective_clusters() -> None:
    assert effective_clusters(np.arange(5)) == pytest.approx(5)
    assert effective_clusters(np.array([3, 3, 3])) == pytest.approx(1)
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert effective_clusters(np.array([0, 0, 0, 2])) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[5, 5], [5, 5]], 0),
        ([[10, 0], [0, 10]], 1),
        ([[10, 0], [5, 5]], 1 - (np.log(2) / 2) / -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))),
        ([[4, 0], [0, 0], [1, 1]], 1 - (np.log(2) / 3) / -(5 / 6 * np.log(5 / 6) + 1 / 6 * np.log(1 / 6))),
        ([[7, 0], [7, 0]], 0),  # one cluster says nothing
        ([[0, 0]], 0),
    ],
)
def test_image_share_is_information_over_entropy(counts: list[list[int]], expected: float) -> None:
    pixels = np.array(counts)
    assert image_share(pixels) == pytest.approx(expected)
    image, cluster = (np.repeat(place.ravel(), pixels.ravel()) for place in np.indices(pixels.shape))
    if len(set(cluster)) > 1:
        assert image_share(pixels) == pytest.approx(homogeneity_score(cluster, image))


def test_clusters_by_image_leaves_out_what_is_no_cluster() -> None:
    maps = np.array([[[0, 1], [1, 255]], [[2, 2], [2, 2]]], np.uint8)
    np.testing.assert_array_equal(clusters_by_image(maps, 3), [[1, 2, 0], [0, 0, 4]])
