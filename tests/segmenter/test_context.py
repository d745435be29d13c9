"""Context-aware embedding (4.3): Eq. 7 to 9 and the non-local sum against loops in float64."""

import math

import numpy as np
import pytest
import torch

from stages.segmenter.context import (
    KERNELS,
    WEIGHTS,
    ContextModule,
    appearance_kernel,
    cosine_similarity,
    proximity_kernel,
    row_normalise,
    slope,
    squared_distance,
    to_lab,
)
from stages.settings.schema_train import Context

KERNEL = {
    "appearance_weight": 0.7,
    "proximity_weight": 0.3,
    "position_bandwidth": 0.25,
    "color_bandwidth": 0.15,
    "proximity_bandwidth": 0.35,
}
ROWS, COLUMNS, DIM = 3, 4, 5
# In shorter sides of the image, which is 3 pixels high.
PLACES = [(row / 3, column / 3) for row in range(ROWS) for column in range(COLUMNS)]
# Distances come from one matrix product in float32, so a pixel is not at distance 0 to the last digit.
ROUNDING = 2e-5
SIMILARITIES = [("cnn", "product"), ("raw", "product"), ("both", "product"), ("both", "sum")]
NORMS = ["l1", "softmax", "count", "none"]
EPSILON = 1e-6  # beside the raw similarity under the logarithm


def _settings(**changes: object) -> Context:
    settings = {
        "similarity": "both",
        "combine": "product",
        "norm": "l1",
        "temperature": 0.4,
        "stride": 4,
        "color": "rgb",
        "image": "view",
        "residual": "add",
        "start": "random",
        "learn_kernels": True,
        "lr_factor": 10.0,
        "kernel_bounds": [0.02, 2.0],
        **KERNEL,
    }
    return Context(**{**settings, **changes})


def _maps(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(count, DIM, ROWS, COLUMNS, generator=generator)
    return feature, torch.rand(count, 3, ROWS, COLUMNS, generator=generator)


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.dot(x, y) / (math.sqrt(np.dot(x, x)) * math.sqrt(np.dot(y, y))))


def _gaussian(x, y, bandwidth: float) -> float:
    return math.exp(-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / (2 * bandwidth**2))


def _plain_affinity(
    feature: np.ndarray, image: np.ndarray, similarity: str, combine: str, norm: str, temperature: float = 0.4
) -> np.ndarray:
    """w_ij of one image; feature [D, h, w], image [3, h, w]."""
    pixels, colors = feature.reshape(DIM, -1).T, image.reshape(3, -1).T
    result = np.zeros((len(PLACES), len(PLACES)))
    for i in range(len(PLACES)):
        for j in range(len(PLACES)):
            semantic = max(0.0, _cosine(pixels[i], pixels[j]))
            appearance = _gaussian(PLACES[i], PLACES[j], KERNEL["position_bandwidth"]) * _gaussian(
                colors[i], colors[j], KERNEL["color_bandwidth"]
            )
            proximity = _gaussian(PLACES[i], PLACES[j], KERNEL["proximity_bandwidth"])
            raw = KERNEL["appearance_weight"] * appearance + KERNEL["proximity_weight"] * proximity
            both = semantic * raw if combine == "product" else semantic + raw
            result[i, j] = {"cnn": semantic, "raw": raw, "both": both}[similarity]
            if combine == "log_sum" and similarity == "both":
                result[i, j] = temperature * (semantic / temperature + math.log(raw + EPSILON))
        if norm == "softmax":
            result[i] = np.exp(result[i] / temperature)
        if norm in ("l1", "softmax"):
            result[i] /= result[i].sum()
    return result / len(PLACES) if norm == "count" else result


def test_cosine_similarity(device: torch.device) -> None:
    feature = _maps()[0].flatten(2).transpose(1, 2)
    found = cosine_similarity(feature.to(device)).cpu()
    pixels = feature.double().numpy()
    expected = [[[_cosine(x, y) for y in image] for x in image] for image in pixels]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.diagonal(dim1=1, dim2=2), 1, atol=1e-6)
    torch.testing.assert_close(found, found.transpose(1, 2))


def test_appearance_kernel_is_equation_8(device: torch.device) -> None:
    color = _maps()[1].flatten(2).transpose(1, 2)
    apart = squared_distance(torch.tensor([PLACES], device=device))[0]
    log_weight, *log_bandwidths = torch.tensor([0.7, 0.25, 0.15], device=device).log()
    found = appearance_kernel(color.to(device), apart, log_weight, *map(slope, log_bandwidths)).cpu()
    expected = [
        [
            [
                0.7 * _gaussian(PLACES[i], PLACES[j], 0.25) * _gaussian(image[i], image[j], 0.15)
                for j in range(len(PLACES))
            ]
            for i in range(len(PLACES))
        ]
        for image in color.double().numpy()
    ]
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
    torch.testing.assert_close(found, found.transpose(1, 2))
    np.testing.assert_allclose(found.diagonal(dim1=1, dim2=2), 0.7, atol=ROUNDING)


def test_proximity_kernel_is_equation_9(device: torch.device) -> None:
    apart = squared_distance(torch.tensor([PLACES], device=device))[0]
    log_weight, log_bandwidth = torch.tensor([0.3, 0.35], device=device).log()
    found = proximity_kernel(apart, log_weight, slope(log_bandwidth)).cpu()
    expected = [[0.3 * _gaussian(first, second, 0.35) for second in PLACES] for first in PLACES]
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
    torch.testing.assert_close(found, found.T)
    np.testing.assert_allclose(found.diagonal(), 0.3, atol=ROUNDING)


def test_kernels_become_the_identity_as_bandwidths_vanish() -> None:
    color = _maps()[1].flatten(2).transpose(1, 2)
    small, wide = slope(torch.tensor([0.02, 1e3]).log())
    weight = torch.zeros(())  # the logarithm of 1
    identity = torch.eye(len(PLACES))
    apart = squared_distance(torch.tensor([PLACES]))[0]
    torch.testing.assert_close(proximity_kernel(apart, weight, small), identity, atol=2e-3, rtol=0)
    for slopes in ((small, wide), (wide, small)):
        kernel = appearance_kernel(color, apart, weight, *slopes)
        torch.testing.assert_close(kernel, identity.expand(2, -1, -1), atol=2e-3, rtol=0)


def test_raw_similarity_is_equation_7(device: torch.device) -> None:
    _, image = _maps()
    module = ContextModule(DIM, _settings()).to(device)
    found = module.raw_similarity(image.to(device)).detach().cpu()
    for ours, pixels in zip(found, image.double().numpy(), strict=True):
        colors = pixels.reshape(3, -1).T
        for i, first in enumerate(PLACES):
            for j, second in enumerate(PLACES):
                appearance = _gaussian(first, second, 0.25) * _gaussian(colors[i], colors[j], 0.15)
                assert float(ours[i, j]) == pytest.approx(
                    0.7 * appearance + 0.3 * _gaussian(first, second, 0.35), abs=ROUNDING
                )
    torch.testing.assert_close(found, found.transpose(1, 2))
    np.testing.assert_allclose(found.diagonal(dim1=1, dim2=2), 1, atol=ROUNDING)


def test_row_normalise(device: torch.device) -> None:
    affinity = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    found = row_normalise(affinity.to(device)).cpu()
    plain = affinity.double().numpy()
    np.testing.assert_allclose(found, plain / plain.sum(2)[:, :, None], rtol=1e-5)
    np.testing.assert_allclose(found.sum(2), 1, atol=1e-5)
    assert (row_normalise(torch.zeros(1, 3, 3)) == 0).all()  # and not 0 / 0


@pytest.mark.parametrize(
    ("similarity", "combine", "norm"),
    [(*kind, norm) for kind in SIMILARITIES for norm in NORMS] + [("both", "log_sum", "softmax")],
)
def test_affinity(similarity: str, combine: str, norm: str, device: torch.device) -> None:
    feature, image = _maps()
    module = ContextModule(DIM, _settings(similarity=similarity, combine=combine, norm=norm)).to(device)
    found = module.affinity(feature.to(device), image.to(device)).detach().cpu()
    for ours, one_feature, one_image in zip(
        found, feature.double().numpy(), image.double().numpy(), strict=True
    ):
        expected = _plain_affinity(one_feature, one_image, similarity, combine, norm)
        np.testing.assert_allclose(ours, expected, atol=ROUNDING)
    if norm in ("l1", "softmax"):
        np.testing.assert_allclose(found.sum(2), 1, atol=1e-5)
    assert (found >= 0).all()


def test_colours_in_lab() -> None:
    """Raw similarity of colours that were brought to L*a*b* by hand."""
    _, image = _maps()
    module = ContextModule(DIM, _settings(color="lab"))
    plain = ContextModule(DIM, _settings())
    found = module.raw_similarity(image)
    torch.testing.assert_close(found, plain.raw_similarity(to_lab(image)))
    assert (found - plain.raw_similarity(image)).abs().max() > 0.01


@pytest.mark.parametrize(("similarity", "combine"), SIMILARITIES)
def test_affinity_follows_a_permutation_of_images_and_not_of_their_pixels_colours(
    similarity: str, combine: str
) -> None:
    feature, image = _maps(3)
    module = ContextModule(DIM, _settings(similarity=similarity, combine=combine))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        module.affinity(feature[order], image[order]), module.affinity(feature, image)[order]
    )
    # Mirrored input gives mirrored affinities: places count by their distances alone.
    mirrored = module.affinity(feature.flip(3), image.flip(3)).view(3, ROWS, COLUMNS, ROWS, COLUMNS)
    plain = module.affinity(feature, image).view(3, ROWS, COLUMNS, ROWS, COLUMNS)
    torch.testing.assert_close(mirrored.flip(2, 4), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("similarity", "combine"), SIMILARITIES)
def test_forward_is_the_non_local_sum_beside_a_projection(similarity: str, combine: str) -> None:
    torch.manual_seed(0)
    module = ContextModule(DIM, _settings(similarity=similarity, combine=combine))
    feature, image = _maps()
    found = module(feature, image, (ROWS, COLUMNS)).detach()
    value, project = (
        (layer.weight.detach().double().numpy()[:, :, 0, 0], layer.bias.detach().double().numpy())
        for layer in (module.value, module.project)
    )
    for ours, one_feature, one_image in zip(
        found, feature.double().numpy(), image.double().numpy(), strict=True
    ):
        weights = _plain_affinity(one_feature, one_image, similarity, combine, "l1")
        pixels = one_feature.reshape(DIM, -1).T
        for i in range(len(PLACES)):
            context = np.zeros(DIM)
            for j in range(len(PLACES)):
                context += weights[i, j] * (value[0] @ pixels[j] + value[1])
            expected = context + project[0] @ pixels[i] + project[1]
            np.testing.assert_allclose(ours.reshape(DIM, -1)[:, i], expected, atol=1e-5)


@pytest.mark.parametrize("residual", ["add", "concat"])
@pytest.mark.parametrize("norm", ["l1", "softmax"])
def test_it_starts_as_if_it_were_absent(norm: str, residual: str, device: torch.device) -> None:
    module = ContextModule(DIM, _settings(start="identity", norm=norm, residual=residual)).to(device)
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, DIM, 8, 8, generator=generator).to(device)
    image = torch.rand(2, 3, 16, 16, generator=generator).to(device)
    assert torch.equal(module(feature, image, (4, 4)), feature)


def test_context_alone_or_beside_the_feature_map() -> None:
    feature, image = _maps()
    torch.manual_seed(0)
    added = ContextModule(DIM, _settings())
    context = added(feature, image, (ROWS, COLUMNS)) - added.project(feature)
    torch.manual_seed(0)
    alone = ContextModule(DIM, _settings(residual="none"))
    torch.testing.assert_close(alone(feature, image, (ROWS, COLUMNS)), context, atol=1e-5, rtol=1e-4)
    torch.manual_seed(0)
    joined = ContextModule(DIM, _settings(residual="concat"))
    weight, bias = joined.merge.weight[:, :, 0, 0], joined.merge.bias
    both = torch.cat([feature, context], dim=1)
    expected = torch.einsum("kd,ndhw->nkhw", weight, both) + bias[:, None, None]
    torch.testing.assert_close(joined(feature, image, (ROWS, COLUMNS)), expected, atol=1e-5, rtol=1e-4)


def test_fixed_kernels_do_not_learn() -> None:
    module = ContextModule(DIM, _settings(learn_kernels=False))
    assert not module.log_kernel.requires_grad
    assert module.kernels() == pytest.approx(KERNEL, rel=1e-6)


def test_kernels_are_round_in_an_image_that_is_not_square() -> None:
    """Position has one unit for both axes, the shorter side: that of the square images of training."""
    module = ContextModule(DIM, _settings(similarity="raw"))
    flat = torch.full((1, 3, 4, 8), 0.5)
    raw = module.raw_similarity(flat).detach().view(4, 8, 4, 8)
    torch.testing.assert_close(raw[1, 3, 3, 3], raw[1, 3, 1, 5])  # two pixels down, two to the right
    square = module.raw_similarity(flat[..., :4]).detach().view(4, 4, 4, 4)
    torch.testing.assert_close(raw[:, :4, :, :4], square)


def test_a_kernel_parameter_that_leaves_its_range_comes_back() -> None:
    module = ContextModule(DIM, _settings(norm="softmax"))
    feature, image = _maps()
    for name, beyond in (("position_bandwidth", 2.5), ("color_bandwidth", 0.01), ("appearance_weight", 9.0)):
        with torch.no_grad():
            module.log_kernel[KERNELS.index(name)] = math.log(beyond)
    module.project_kernels()
    kernels = module.kernels()
    assert kernels["position_bandwidth"] == pytest.approx(2.0)
    assert kernels["color_bandwidth"] == pytest.approx(0.02)
    assert kernels["appearance_weight"] == pytest.approx(2.0)
    module(feature, image, (ROWS, COLUMNS)).square().sum().backward()
    assert (module.log_kernel.grad != 0).all(), "one stays at its bound for ever"


@pytest.mark.parametrize("pushed", [0.5, 3.0, 50.0])
def test_only_the_ratio_of_the_weights_is_learned_where_only_it_decides(pushed: float) -> None:
    """Under l1 a common factor of both weights has no effect, so it must not drift."""
    module = ContextModule(DIM, _settings(similarity="raw", norm="l1"))
    product = KERNEL["appearance_weight"] * KERNEL["proximity_weight"]
    before = module.affinity(*_maps()).detach()
    with torch.no_grad():
        module.log_kernel[: len(WEIGHTS)] += math.log(pushed)
    module.project_kernels()
    torch.testing.assert_close(module.affinity(*_maps()).detach(), before)
    with torch.no_grad():
        module.log_kernel[KERNELS.index("appearance_weight")] += math.log(pushed)
    module.project_kernels()
    first, second = (module.kernels()[name] for name in WEIGHTS)
    assert first * second == pytest.approx(product, rel=1e-5)
    assert max(first, second) <= 2.0 + 1e-6


def test_context_is_pooled_to_the_grid_and_brought_back() -> None:
    torch.manual_seed(0)
    module = ContextModule(DIM, _settings())
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, DIM, 4, 4, generator=generator)
    colors = torch.rand(1, 3, 4, 4, generator=generator)
    # Constant blocks pool to themselves.
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    image = colors.repeat_interleave(4, 2).repeat_interleave(4, 3)
    at_grid = module(coarse, colors, (4, 4)) - module.project(coarse)
    found = module(fine, image, (4, 4)) - module.project(fine)
    # Half-pixel bilinear: fine cell c lies at (c + 1/2) / 2 - 1/2 of the grid, clamped at the border.
    weight = np.zeros((8, 4))
    for cell in range(8):
        place = min(max((cell + 0.5) / 2 - 0.5, 0.0), 3.0)
        low = min(int(place), 2)
        weight[cell, low], weight[cell, low + 1] = 1 - (place - low), place - low
    expected = np.einsum("ri,dij,cj->drc", weight, at_grid[0].detach().double().numpy(), weight)
    np.testing.assert_allclose(found[0].detach(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("similarity", "combine", "norm"),
    [(*kind, norm) for kind in SIMILARITIES for norm in ("l1", "softmax")]
    + [("both", "product", "none"), ("both", "product", "count"), ("both", "log_sum", "softmax")],
)
def test_gradients_of_inputs_and_of_all_parameters(
    similarity: str, combine: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # float32 is too coarse for differences
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        module = ContextModule(2, _settings(similarity=similarity, combine=combine, norm=norm))
        names = [name for name, _ in module.named_parameters()]
        generator = torch.Generator().manual_seed(2)
        feature = torch.randn(1, 2, 4, 4, generator=generator).requires_grad_()
        image = torch.rand(1, 3, 4, 4, generator=generator).requires_grad_()

        def forward(feature: torch.Tensor, image: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
            parameters = dict(zip(names, values, strict=True))
            return torch.func.functional_call(module, parameters, (feature, image, (2, 2)))

        values = [value.detach().clone().requires_grad_() for value in module.parameters()]
        assert torch.autograd.gradcheck(forward, (feature, image, *values))
        assert module.log_kernel.shape == (5,)
        gradients = torch.autograd.grad(
            forward(feature, image, *values).square().sum(), values, allow_unused=True
        )
        for name, gradient in zip(names, gradients, strict=True):
            if name == "log_kernel" and similarity == "cnn":
                assert gradient is None, "the kernels decide nothing without raw similarity"
            else:
                assert gradient is not None, name
                assert (gradient != 0).all() if name == "log_kernel" else gradient.abs().max() > 0, name
    finally:
        torch.set_default_dtype(default)


def test_kernel_parameters_stay_positive() -> None:
    module = ContextModule(DIM, _settings())
    assert module.log_kernel.exp().tolist() == pytest.approx([KERNEL[name] for name in KERNELS], rel=1e-6)
    with torch.no_grad():
        module.log_kernel.sub_(5.0)  # however far training pushes
    raw = module.raw_similarity(_maps()[1])
    assert torch.isfinite(raw).all()
    assert (raw >= 0).all()
    assert (raw.diagonal(dim1=1, dim2=2) > 0).all()
