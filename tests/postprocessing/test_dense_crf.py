"""The dense CRF against exact mean field, from Kraehenbuehl & Koltun 2011, Algorithm 1, in float64."""

import numpy as np
import pytest
import torch

from stages.postprocessing.dense_crf import mean_field
from stages.postprocessing.score_maps import probabilities, upsample
from stages.settings.schema import Refine

SETTINGS = [
    {"smoothness_weight": 3.0, "smoothness_px": 1.0, "appearance_weight": 0.0, "appearance_px": 1.0},
    {"smoothness_weight": 0.0, "smoothness_px": 1.0, "appearance_weight": 2.0, "appearance_px": 3.0},
    {"smoothness_weight": 1.0, "smoothness_px": 1.0, "appearance_weight": 1.0, "appearance_px": 3.0},
]


def crf_settings(**changes: float | str) -> Refine:
    """Section `refine` with the given values; five steps unless they say otherwise."""
    return Refine(
        **{"backend": "cpu", "temperature": 0.1, "iterations": 5, "appearance_color": 5.0, **changes}
    )


def _exact(
    image, unary, *, iterations, smoothness_weight, smoothness_px, appearance_weight, appearance_px, colour
):
    """Loops over labels and pixel pairs; no filter, no approximation."""
    num_labels, height, width = unary.shape
    places = [(row, column) for row in range(height) for column in range(width)]
    pixels = len(places)
    smooth, appear = np.zeros((pixels, pixels)), np.zeros((pixels, pixels))
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            distance = (row - other_row) ** 2 + (column - other_column) ** 2
            difference = image[row, column].astype(float) - image[other_row, other_column].astype(float)
            smooth[i, j] = np.exp(-distance / (2 * smoothness_px**2))
            appear[i, j] = np.exp(
                -distance / (2 * appearance_px**2) - difference @ difference / (2 * colour**2)
            )
    pairwise = np.zeros((pixels, pixels))
    for weight, kernel in ((smoothness_weight, smooth), (appearance_weight, appear)):
        row_sum = kernel.sum(1)
        pairwise += weight * kernel / np.sqrt(np.outer(row_sum, row_sum))
    energy = -np.log(unary.astype(float).reshape(num_labels, -1))
    marginals = np.exp(-energy) / np.exp(-energy).sum(0)
    for _ in range(iterations):
        update = np.exp(-energy + marginals @ pairwise)
        marginals = update / update.sum(0)
    return marginals.reshape(unary.shape)


def _case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    image[:, :2] //= 8
    unary = random.dirichlet(np.ones(3), (6, 5)).transpose(2, 0, 1).astype(np.float32)
    return image, unary


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("iterations", [1, 5])
def test_near_exact_mean_field(seed: int, settings: dict[str, float], iterations: int) -> None:
    image, unary = _case(seed)
    ours = mean_field(image, unary, crf_settings(iterations=iterations, appearance_color=20.0, **settings))
    exact = _exact(image, unary, iterations=iterations, colour=20.0, **settings)
    # The lattice is an approximation; where the exact answer is clear, so must ours be.
    assert np.abs(ours - exact).mean() < 0.05
    ranked = np.sort(exact, axis=0)
    clear = ranked[-1] - ranked[-2] > 0.3
    assert clear.sum() > 10
    assert (ours.argmax(0) == exact.argmax(0))[clear].all()


def test_is_nearer_to_the_exact_answer_than_the_unary_is() -> None:
    for seed in range(5):
        image, unary = _case(seed)
        settings = {**SETTINGS[2], "iterations": 5}
        exact = _exact(image, unary, colour=20.0, **settings)
        ours = mean_field(image, unary, crf_settings(appearance_color=20.0, **settings))
        assert np.abs(ours - exact).mean() < 0.3 * np.abs(unary - exact).mean()


def test_zero_pairwise_weights_give_the_unary_back() -> None:
    image, unary = _case(0)
    settings = {"smoothness_px": 1.0, "appearance_px": 3.0, "appearance_color": 5.0, "iterations": 3}
    settings |= {"smoothness_weight": 0.0, "appearance_weight": 0.0}
    found = mean_field(image, unary, crf_settings(**settings))
    np.testing.assert_allclose(found, unary, atol=1e-6)
    np.testing.assert_array_equal(found.argmax(0), unary.argmax(0))


def test_permuting_clusters_permutes_the_result() -> None:
    image, unary = _case(1)
    settings = crf_settings(**SETTINGS[2], appearance_color=20.0)
    order = np.array([2, 0, 1])
    plain, permuted = (
        mean_field(image, unary, settings).argmax(0),
        mean_field(image, unary[order], settings).argmax(0),
    )
    np.testing.assert_array_equal(order[permuted], plain)


def test_marginals_sum_to_one_and_stay_finite_with_certain_unaries() -> None:
    image, _ = _case(2)
    unary = np.zeros((3, 6, 5), np.float32)
    unary[0] = 1
    marginals = mean_field(image, unary, crf_settings(appearance_color=20.0, **SETTINGS[2]))
    np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-5)
    assert marginals.argmax(0).max() == 0


def test_a_speck_takes_the_label_of_its_surroundings_and_an_edge_keeps_it_apart() -> None:
    image = np.zeros((12, 16, 3), np.uint8)
    image[:, 8:] = 200
    unary = np.full((2, 12, 16), 0.2, np.float32)
    unary[0, :, :8] = unary[1, :, 8:] = 0.8
    unary[:, 5, 3] = 0.45, 0.55  # a speck
    unary[:, :, 8] = np.array([0.6, 0.4])[:, None]  # a border one pixel off
    settings = {
        "smoothness_weight": 1.0,
        "smoothness_px": 1.0,
        "appearance_weight": 4.0,
        "appearance_px": 5.0,
    }
    refined = mean_field(image, unary, crf_settings(iterations=10, **settings)).argmax(0)
    expected = np.repeat([[0] * 8 + [1] * 8], 12, axis=0)
    np.testing.assert_array_equal(refined, expected)


def test_rows_and_columns_are_not_mixed_up() -> None:
    image = np.zeros((4, 9, 3), np.uint8)
    unary = np.full((2, 4, 9), 0.1, np.float32)
    unary[0, 0], unary[1, 1:] = 0.9, 0.9
    settings = {
        "smoothness_weight": 0.2,
        "smoothness_px": 0.5,
        "appearance_weight": 0.0,
        "appearance_px": 1.0,
    }
    refined = mean_field(image, unary, crf_settings(iterations=2, **settings)).argmax(0)
    assert (refined[0] == 0).all()
    assert (refined[1:] == 1).all()


def test_probabilities_are_a_tempered_softmax_of_upsampled_cosines() -> None:
    scores = np.random.default_rng(0).uniform(-1, 1, (3, 2, 2)).astype(np.float16)
    found = probabilities(upsample(scores[None], 4)[0], temperature=0.5)
    # Half-pixel centres: output cell r lies at (r + 0.5) / 2 - 0.5 in the input, clamped at the border.
    weight = np.zeros((4, 2))
    for row, place in enumerate(np.clip((np.arange(4) + 0.5) / 2 - 0.5, 0, 1)):
        weight[row] = 1 - place, place
    upsampled = np.einsum("ri,kij,cj->krc", weight, scores.astype(np.float64), weight)
    expected = np.exp(upsampled / 0.5) / np.exp(upsampled / 0.5).sum(0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.001, 100.0])
def test_temperature_changes_how_sure_the_unary_is_and_not_what_it_says(temperature: float) -> None:
    scores = np.random.default_rng(1).uniform(-1, 1, (4, 3, 3)).astype(np.float16)
    found = probabilities(torch.from_numpy(scores.astype(np.float32)), temperature)
    assert torch.isfinite(found).all()
    np.testing.assert_array_equal(found.argmax(0), scores.argmax(0))
