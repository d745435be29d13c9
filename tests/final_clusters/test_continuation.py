"""Which clusters go on, against all matchings; and the numbers that they take."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.final_clusters.continuation import continue_clusters, count_shared, match_clusters

TABLES = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 9), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


def _iou(table: np.ndarray, j: int, k: int) -> float:
    union = table[j].sum() + table[:, k].sum() - table[j, k]
    return table[j, k] / union if union else 0.0


def _best_sum(table: np.ndarray, least: float) -> float:
    """Over every way to pair old and new clusters, the largest sum of IoU that counts."""
    old, new = range(len(table)), range(table.shape[1])
    few, many, turned = (old, new, False) if len(old) <= len(new) else (new, old, True)
    sums = []
    for chosen in itertools.permutations(many, len(few)):
        pairs = zip(chosen, few, strict=True) if turned else zip(few, chosen, strict=True)
        found = [_iou(table, j, k) for j, k in pairs]
        sums.append(sum(one for one in found if one >= least))
    return max(sums)


@given(TABLES, st.sampled_from([0.01, 1 / 3, 0.5]))
def test_the_matching_is_the_best_of_all(rows: list[list[int]], least: float) -> None:
    table = np.array(rows, np.int64)
    found = match_clusters(table, least)
    assert len(set(found.values())) == len(found), "one old cluster for two new ones"
    pairs = [_iou(table, j, k) for k, j in found.items()]
    assert all(one >= least for one in pairs)
    assert sum(pairs) == pytest.approx(_best_sum(table, least))


@given(TABLES)
def test_numbers_are_used_once_and_old_ones_only_by_those_that_go_on(rows: list[list[int]]) -> None:
    table = np.array(rows, np.int64)
    num_old, num_new = table.shape
    found = continue_clusters(table)
    assert sorted(found.number.tolist()) == list(range(num_new))
    for k, j in match_clusters(table).items():
        if j < num_new:
            assert found.number[k] == j
            assert found.kept[j] == pytest.approx(_iou(table, j, k))
        else:
            assert found.moved[j] == found.number[k]
    assert {*found.kept, *found.new} == set(range(num_new))
    assert not set(found.kept) & set(found.new)
    assert {*found.kept, *found.moved, *found.gone} == set(range(num_old))
    # Numbers that are free anyway go first: an old one is taken only when there are no others.
    beyond = set(range(num_old, num_new))
    if any(number < num_old for number in found.new):
        assert beyond <= set(found.new)


def test_a_permutation_is_undone() -> None:
    table = np.zeros((4, 4), np.int64)
    table[[2, 0, 3, 1], [0, 1, 2, 3]] = 10
    assert continue_clusters(table).number.tolist() == [2, 0, 3, 1]


def test_weak_pairs_do_not_displace_a_strong_one() -> None:
    """0.62 alone is worth less than 0.3 + 0.33, but those two are too weak to carry a name."""
    table = np.array([[62, 15], [23, 0]], np.int64)
    assert match_clusters(table, 0.5) == {0: 0}


def test_maps_of_another_size_are_compared_place_by_place() -> None:
    old = np.array([[[0, 1], [1, 0]]])
    new = np.kron(old, np.ones((3, 3), np.int64)) * 2
    assert count_shared(old, new, 2, 3).tolist() == [[18, 0, 0], [0, 0, 18]]
