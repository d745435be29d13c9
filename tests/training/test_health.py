"""Label-free signs of health: against brute force, and a collapse that has to be seen."""

import itertools

import numpy as np
import pytest
import torch

from stages.training.health import SIGNS, Health, matched_share, used_share

CPU = torch.device("cpu")


def _health(num_clusters: int = 4, collapse_below: float = 0.2) -> Health:
    return Health(num_clusters, collapse_below=collapse_below, device=CPU)


@pytest.mark.parametrize("seed", range(5))
def test_matched_share_is_the_best_of_all_matchings(seed: int) -> None:
    pairs = np.random.default_rng(seed).integers(0, 50, (4, 4))
    best = max(sum(pairs[i, order[i]] for i in range(4)) for order in itertools.permutations(range(4)))
    assert matched_share(pairs) == pytest.approx(best / pairs.sum())


def test_matched_share_does_not_see_names() -> None:
    pairs = np.diag([3, 5, 2])
    assert matched_share(pairs[:, [2, 0, 1]]) == 1
    assert matched_share(np.zeros((3, 3), int)) == 0


def test_figures_of_an_epoch() -> None:
    health = _health()
    first = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).view(2, 2, 2)
    health.start_epoch([torch.tensor([10, 10, 10, 10]), torch.tensor([40, 0, 0, 0])], first)
    assert np.isnan(health.figures()["moved_share"])
    renamed_and_one_moved = torch.tensor([1, 1, 0, 0, 3, 3, 2, 3]).view(2, 2, 2)
    health.start_epoch([torch.tensor([10, 10, 10, 10]), torch.tensor([5, 5, 10, 20])], renamed_and_one_moved)
    view = torch.tensor([0, 1, 2, 3]).view(1, 2, 2)
    health.add(view, torch.tensor([3, 2, 1, 0]).view(1, 2, 2))
    health.add(view, torch.tensor([3, 2, 1, 1]).view(1, 2, 2))
    figures = health.figures()
    assert list(figures) == list(SIGNS)
    # Of the whole 1, 2, 2 and 3 eighths; of one image two halves, of the other a quarter and three.
    whole = -sum(share * np.log(share) for share in np.array([1, 2, 2, 3]) / 8)
    images = (np.log(2) - 0.25 * np.log(0.25) - 0.75 * np.log(0.75)) / 2
    assert figures["image_share"] == pytest.approx(1 - images / whole)
    assert figures["moved_share"] == pytest.approx(1 / 8)
    assert figures["view_agreement"] == pytest.approx(7 / 8)
    assert figures["largest_cluster"] == pytest.approx(0.5)
    shares = np.array([5, 5, 10, 20]) / 40
    assert figures["effective_clusters"] == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())))
    assert health.cluster_shares() == [0.25] * 4


def test_an_epoch_forgets_the_pairs_of_the_last() -> None:
    health = _health()
    for pair in ((0, 1), (2, 2)):
        health.start_epoch([torch.ones(4, dtype=torch.long)] * 2, torch.zeros(1, 1, 3, dtype=torch.long))
        health.add(*(torch.full((1, 1, 5), value) for value in pair))
    assert health.figures()["view_agreement"] == 1


@pytest.mark.parametrize(
    ("counts", "collapsed"),
    [([97, 1, 1, 1], True), ([100, 0, 0, 0], True), ([60, 40, 0, 0], False), ([25, 25, 25, 25], False)],
)
def test_collapse_is_named_with_its_cure(
    counts: list[int], collapsed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    health = _health()
    healthy = torch.tensor([25, 25, 25, 25])
    health.start_epoch([healthy, torch.tensor(counts)], torch.zeros(1, 1, 3, dtype=torch.long))
    assert health.is_collapsed() is collapsed
    health.warn()
    said = capsys.readouterr().err
    assert ("of 4 clusters are in use; lower train.lr" in said) is collapsed


@pytest.mark.parametrize("num_clusters", [2, 27, 200])
def test_used_share_has_the_same_ends_for_every_number_of_clusters(num_clusters: int) -> None:
    assert used_share(1.0, num_clusters) == 0
    assert used_share(float(num_clusters), num_clusters) == 1


def test_a_saved_state_goes_on() -> None:
    health, other = _health(), _health()
    for _ in range(2):
        health.start_epoch([torch.arange(4), torch.arange(4)], torch.arange(4).view(2, 1, 2))
        health.add(torch.arange(4).view(1, 2, 2), torch.arange(4).view(1, 2, 2))
    other.load_state_dict(health.state_dict())
    assert other.figures() == health.figures()
    assert other.cluster_shares() == health.cluster_shares()
