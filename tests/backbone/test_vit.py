"""The ViT against loops in float64, from the papers (Vaswani et al., 2017; Dosovitskiy et al., 2021)."""

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.special import erf

from stages.backbone.vit import POSITIONS, ViT, attend, resample_positions, with_strict_gradient
from stages.core.device import set_numerics

DIM, HEADS, DEPTH = 12, 6, 12


def _random_vit(registers: int, layer_scale: bool) -> ViT:
    """A network in which every parameter matters."""
    vit = ViT("vit_small", 2, 8, num_registers=registers, has_layer_scale=layer_scale).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in vit.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64) + 0.1)
    return vit


def _norm(token: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (token - token.mean()) / math.sqrt(token.var() + 1e-6) * weight + bias


def _softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def _attention(tokens: list[np.ndarray], weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    parts = [weights["attn.qkv.weight"] @ token + weights["attn.qkv.bias"] for token in tokens]
    size = DIM // HEADS
    mixed = []
    for part in parts:
        heads = []
        for head in range(HEADS):
            place = slice(head * size, (head + 1) * size)
            query = part[:DIM][place]
            logits = [query @ other[DIM : 2 * DIM][place] / math.sqrt(size) for other in parts]
            shares = _softmax(np.array(logits))
            heads.append(sum(w * o[2 * DIM :][place] for w, o in zip(shares, parts, strict=True)))
        mixed.append(weights["attn.proj.weight"] @ np.concatenate(heads) + weights["attn.proj.bias"])
    return mixed


def _mlp(token: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    hidden = weights["mlp.fc1.weight"] @ token + weights["mlp.fc1.bias"]
    hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
    return weights["mlp.fc2.weight"] @ hidden + weights["mlp.fc2.bias"]


def _block(tokens: list[np.ndarray], weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    normed = [_norm(token, weights["norm1.weight"], weights["norm1.bias"]) for token in tokens]
    first, second = (weights.get(f"ls{branch}.gamma", np.ones(DIM)) for branch in (1, 2))
    tokens = [token + first * mixed for token, mixed in zip(tokens, _attention(normed, weights), strict=True)]
    return [
        token + second * _mlp(_norm(token, weights["norm2.weight"], weights["norm2.bias"]), weights)
        for token in tokens
    ]


def _plain(weights: dict[str, np.ndarray], image: np.ndarray) -> list[list[np.ndarray]]:
    """All tokens after the last norm, for every depth; `image` [3, H, W] is as large as the positions."""
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    side = image.shape[1] // 8
    tokens = [weights["cls_token"][0, 0] + weights["pos_embed"][0, 0]]
    tokens += list(weights["register_tokens"][0]) if "register_tokens" in weights else []
    for row in range(side):
        for column in range(side):
            patch = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            value = np.array([(kernel[channel] * patch).sum() for channel in range(DIM)]) + bias
            tokens.append(value + weights["pos_embed"][0, 1 + row * side + column])
    depths = []
    for number in range(DEPTH):
        start = f"blocks.{number}."
        own = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        tokens = _block(tokens, own)
        depths.append([_norm(token, weights["norm.weight"], weights["norm.bias"]) for token in tokens])
    return depths


@pytest.mark.parametrize(("registers", "layer_scale"), [(0, False), (2, True)], ids=["dino", "dinov2"])
def test_it_is_the_transformer_of_the_papers(
    registers: int, layer_scale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POSITIONS, 8, 3)  # a grid that loops can follow
    vit = _random_vit(registers, layer_scale)
    image = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        maps, pooled = vit(image), vit.global_feature(image)
    assert vit.channels == (DIM,) * 4
    assert pooled.dtype == torch.float32
    weights = {name: value.detach().numpy() for name, value in vit.named_parameters()}
    for number in range(2):
        depths = _plain(weights, image[number].numpy())
        np.testing.assert_allclose(pooled[number].numpy(), depths[-1][0], rtol=1e-5, atol=1e-6)
        for feature_map, tokens in zip(maps, depths[2::3], strict=True):
            expected = np.stack(tokens[1 + registers :]).reshape(3, 3, DIM).transpose(2, 0, 1)
            np.testing.assert_allclose(feature_map[number].numpy(), expected, rtol=1e-9, atol=1e-9)


def _cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, as torch and the published models take it."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (2, 7), (9, 4)])
def test_positions_between_those_that_were_learned_are_bicubic(rows: int, columns: int) -> None:
    side = 4
    grid = torch.randn(1, side * side, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = resample_positions(grid, rows, columns).view(rows, columns, 3)
    for row in range(rows):
        for column in range(columns):
            y, x = (row + 0.5) * side / rows - 0.5, (column + 0.5) * side / columns - 0.5
            expected = np.zeros(3)
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    cell = min(max(i, 0), side - 1) * side + min(max(j, 0), side - 1)
                    expected += _cubic(y - i) * _cubic(x - j) * grid[0, cell].numpy()
            np.testing.assert_allclose(found[row, column].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("patch_px", [8, 14, 16])
def test_every_side_gives_a_grid_of_patches(patch_px: int) -> None:
    """A side that is no multiple of the patch is resampled to the nearest one, never cut."""
    vit = ViT("vit_small", 2, patch_px, num_registers=0, has_layer_scale=False).eval()
    for height, width in ((2 * patch_px, 3 * patch_px), (2 * patch_px + 3, 3 * patch_px - 3), (5, patch_px)):
        image = torch.rand(
            1, 3, height, width, generator=torch.Generator().manual_seed(0), requires_grad=True
        )
        maps = vit(image)
        rows, columns = max(1, round(height / patch_px)), max(1, round(width / patch_px))
        assert [tuple(feature_map.shape) for feature_map in maps] == [(1, 12, rows, columns)] * 4
        maps.layer1.square().sum().backward()
        assert image.grad is not None
        assert (image.grad.abs().sum(1) > 0).all(), "every pixel is seen"


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    vit = ViT("vit_base", 1, 16, num_registers=1, has_layer_scale=True)
    vit.global_feature(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in vit.parameters())


class _Mode(torch.autograd.Function):
    """Twice a value; notes in which mode its gradient is computed."""

    seen: ClassVar[list[int]] = []

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return 2 * value

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        _Mode.seen.append(torch.get_deterministic_debug_mode())
        return 2 * gradient


def test_only_the_gradient_that_has_a_choice_insists_on_repeating_its_bytes() -> None:
    """Others still warn, if they have no algorithm that does."""
    _Mode.seen.clear()
    set_numerics("float32", deterministic=True)
    start = torch.ones(3, requires_grad=True)
    _Mode.apply(with_strict_gradient(_Mode.apply(_Mode.apply(start)))).sum().backward()
    assert _Mode.seen == [1, 2, 1]
    assert torch.get_deterministic_debug_mode() == 1
    assert torch.equal(start.grad, torch.full((3,), 8.0))
    with torch.no_grad():
        assert torch.equal(with_strict_gradient(2 * start), torch.full((3,), 2.0))


def test_gradients_of_attention_repeat_their_bytes(device: torch.device) -> None:
    """Few images and many tokens: there torch shares the work of one sum among many blocks of a GPU."""
    set_numerics("float32", deterministic=True)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, 2, 900, 16, generator=generator).to(device) for _ in range(3)]

    def gradients() -> list[bytes]:
        parts = [one.clone().requires_grad_() for one in given]
        attend(*parts).square().sum().backward()
        return [one.grad.cpu().numpy().tobytes() for one in parts]

    assert gradients() == gradients()
