"""Active selection (4.2.1) by brute force: nobody who is left out has a better score than one who is kept."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.select_views import select

SCOPES = ["global", "per_cluster", "per_view"]


def _plain(score, pseudo_label, ratio: float, pool: str, scope: str) -> set[tuple[int, int]]:
    """Views that are kept, as (image, view); picked one by one."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for image in range(len(score)):
        for view in range(len(score[0])):
            competes = {"pyramid": True, "whole": view == 0, "parts": view > 0}[pool]
            if competes:
                group = {"global": 0, "per_cluster": int(pseudo_label[image][view]), "per_view": view}[scope]
                groups.setdefault(group, []).append((image, view))
    kept = {(image, 0) for image in range(len(score)) if pool == "parts"}
    for members in groups.values():
        # Half up, of the ratio as it is written.
        count = math.floor(Fraction(str(ratio)) * len(members) + Fraction(1, 2))
        left = list(members)
        for _ in range(count):
            best = left[0]
            for member in left:
                if score[member[0]][member[1]] > score[best[0]][best[1]]:
                    best = member
            left.remove(best)
            kept.add(best)
    return kept


def _kept(mask: np.ndarray) -> set[tuple[int, int]]:
    return {(int(image), int(view)) for image, view in zip(*np.nonzero(mask), strict=True)}


@given(
    data=st.data(),
    images=st.integers(1, 7),
    ratio=st.sampled_from([0.05, 0.1, 0.25, 0.4, 0.5, 0.75, 0.9, 1.0]),
    pool=st.sampled_from(["pyramid", "whole", "parts"]),
    scope=st.sampled_from(SCOPES),
)
def test_select(data: st.DataObject, images: int, ratio: float, pool: str, scope: str) -> None:
    size = images * 6
    # Few values, so that there are ties.
    values = data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
    labels = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    score = np.array(values, np.float32).reshape(images, 6) / 5
    pseudo_label = np.array(labels).reshape(images, 6)
    kept = select(score, pseudo_label, ratio=ratio, pool=pool, scope=scope)
    assert (kept.shape, kept.dtype) == (score.shape, bool)
    assert _kept(kept) == _plain(score, pseudo_label, ratio, pool, scope)


@pytest.mark.parametrize(
    ("images", "ratio", "expected"),
    [(1, 0.25, 2), (5, 0.05, 2), (5, 0.4, 12), (10, 0.4, 24), (1, 0.05, 0), (3, 1.0, 18), (25, 0.29, 44)],
)
def test_numbers_are_rounded_half_up(images: int, ratio: float, expected: int) -> None:
    score = np.random.default_rng(0).random((images, 6), dtype=np.float32)
    kept = select(score, np.zeros(score.shape, int), ratio=ratio, pool="pyramid", scope="global")
    assert kept.sum() == expected


def test_ties_go_to_the_earlier_image_then_the_earlier_view() -> None:
    score = np.full((3, 6), 0.5, np.float32)
    score[2, 5] = 0.9
    kept = select(score, np.zeros((3, 6), int), ratio=0.5, pool="pyramid", scope="global")
    assert _kept(kept) == {(2, 5), *((0, view) for view in range(6)), (1, 0), (1, 1)}


def test_the_whole_image_alone_competes_in_the_pool_of_whole_images() -> None:
    score = np.random.default_rng(1).random((10, 6), dtype=np.float32)
    score[:, 1:] += 1  # the crops would win
    kept = select(score, np.zeros((10, 6), int), ratio=0.4, pool="whole", scope="global")
    assert not kept[:, 1:].any()
    assert set(np.flatnonzero(kept[:, 0])) == set(np.argsort(score[:, 0])[-4:])


def test_each_cluster_gets_its_share() -> None:
    score = np.random.default_rng(2).random((10, 6), dtype=np.float32)
    pseudo_label = np.repeat(np.arange(6)[None], 10, axis=0) // 2
    score += 2 - pseudo_label  # the clusters' scores do not overlap
    kept = select(score, pseudo_label, ratio=0.4, pool="pyramid", scope="per_cluster")
    assert [int(kept[pseudo_label == cluster].sum()) for cluster in range(3)] == [8, 8, 8]
    kept = select(score, pseudo_label, ratio=0.4, pool="pyramid", scope="global")
    assert [int(kept[pseudo_label == cluster].sum()) for cluster in range(3)] == [20, 4, 0]


def test_each_position_gets_its_share() -> None:
    score = np.random.default_rng(3).random((10, 6), dtype=np.float32) + np.arange(6)
    kept = select(score, np.zeros((10, 6), int), ratio=0.4, pool="pyramid", scope="per_view")
    assert kept.sum(0).tolist() == [4] * 6


@pytest.mark.parametrize("scope", SCOPES)
def test_a_larger_ratio_keeps_all_that_a_smaller_one_does(scope: str) -> None:
    rng = np.random.default_rng(4)
    score, pseudo_label = rng.random((9, 6), dtype=np.float32), rng.integers(0, 4, (9, 6))
    previous = np.zeros((9, 6), bool)
    for ratio in (0.1, 0.3, 0.4, 0.8, 1.0):
        kept = select(score, pseudo_label, ratio=ratio, pool="pyramid", scope=scope)
        assert (kept | ~previous).all()
        previous = kept
    assert previous.all()
