"""The views that show a pseudo-label (Fig. 7), against loops, and as they are cut."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.reporting.pictures import Exemplars, Pictures, draw_exemplars, exemplars


def _by_loops(
    kept: np.ndarray, score: np.ndarray, num_clusters: int, views_per_cluster: int
) -> list[Exemplars]:
    members: dict[int, list[tuple[float, int, int]]] = {}
    for image in range(len(kept)):
        for view in range(kept.shape[1]):
            label = int(kept[image, view])
            if label >= 0:
                members.setdefault(label, []).append((-float(score[image, view]), image, view))
    largest = sorted(members, key=lambda label: (-len(members[label]), label))[:num_clusters]
    return [
        Exemplars(
            label,
            len(members[label]),
            tuple((image, view) for _, image, view in sorted(members[label])[:views_per_cluster]),
        )
        for label in largest
    ]


@given(seed=st.integers(0, 2**32 - 1), num_clusters=st.integers(1, 6), views_per_cluster=st.integers(1, 9))
def test_exemplars_are_the_best_views_of_the_largest_pseudo_labels(
    seed: int, num_clusters: int, views_per_cluster: int
) -> None:
    """Scores repeat, so that ties must be broken as promised: by image, then by view."""
    random = np.random.default_rng(seed)
    kept = random.integers(-1, 5, (7, 6)).astype(np.int32)
    score = (random.integers(0, 8, kept.shape) / 8).astype(np.float32)
    found = exemplars(kept, score, num_clusters=num_clusters, views_per_cluster=views_per_cluster)
    assert found == _by_loops(kept, score, num_clusters, views_per_cluster)


def test_each_exemplar_is_cut_from_its_image(tmp_path: Path) -> None:
    """Flat halves of six grays: what is stored says of which image and which half it is."""
    images = np.zeros((3, 8, 8, 3), np.uint8)
    for image in range(3):
        images[image, :4], images[image, 4:] = 40 * image, 120 + 40 * image
    boxes = np.array([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 0.5, 1.0]])
    rows = [Exemplars(7, 2, ((2, 1), (0, 0))), Exemplars(3, 1, ((1, 1),))]
    names = draw_exemplars(rows, images, boxes, Pictures(tmp_path))
    shown = [[np.asarray(Image.open(tmp_path / name)).mean() for name in row] for row in names]
    np.testing.assert_allclose(shown[0], [200, 0], atol=4)
    np.testing.assert_allclose(shown[1], [160], atol=4)
