"""The vision transformer (Dosovitskiy et al., 2021) as used by DINO and DINOv2.

Parameters have the names and, at width 64, the shapes of DINO and DINOv2, so that published checkpoints can
be loaded. torchvision's class supports neither registers nor LayerScale, and only one image size.
"""

import functools
from collections import OrderedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stages.backbone.trunk import FeatureMaps, Trunk

NUM_HEADS = {"vit_small": 6, "vit_base": 12}
DEPTH = 12
MLP_RATIO = 4
NORM_EPSILON = 1e-6
LAYER_SCALE_START = 1e-5  # DINOv2
WARN = 1  # torch's number of the mode that `set_numerics` selects
# Side of the grid of positional embeddings for each patch side: 224 px (DINO), at 14 px 518 px (DINOv2).
POSITIONS = {8: 28, 14: 37, 16: 14}


class ViT(Trunk):
    """Patch embedding and twelve blocks.

    Args:
        arch: vit_small (six attention heads) or vit_base (twelve).
        width: channels of each attention head; the published networks have 64.
        patch_px: side of a patch.
        num_registers: number of register tokens (DINOv2 with registers: 4).
        has_layer_scale: whether each residual branch has a learned scale for every channel (DINOv2).
    """

    def __init__(
        self, arch: str, width: int, patch_px: int, *, num_registers: int, has_layer_scale: bool
    ) -> None:
        super().__init__()
        dim = NUM_HEADS[arch] * width
        self.channels = (dim,) * 4
        self.patch_px, self.num_registers = patch_px, num_registers
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + POSITIONS[patch_px] ** 2, dim))
        if num_registers:
            self.register_tokens = nn.Parameter(torch.empty(1, num_registers, dim))
        patches = nn.Conv2d(3, dim, patch_px, stride=patch_px)
        self.patch_embed = nn.Sequential(OrderedDict(proj=patches))
        self.blocks = nn.ModuleList(
            Block(dim, NUM_HEADS[arch], has_layer_scale=has_layer_scale) for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.apply(_initialise)
        for name, token in self.named_parameters(recurse=False):
            nn.init.trunc_normal_(token, std=1e-6 if name == "register_tokens" else 0.02)

    def forward(self, image: Float[Tensor, "N 3 H W"]) -> FeatureMaps:
        """Patch tokens after every third block, each through the final norm, as in DINOv2."""
        tokens, (rows, columns) = self._embed(image)
        maps = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number % (DEPTH // 4) == 0:
                patches = self.norm(tokens)[:, 1 + self.num_registers :]
                maps.append(patches.transpose(1, 2).unflatten(2, (rows, columns)))
        return FeatureMaps(*maps)

    def global_feature(self, image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
        """The class token, the global feature of DINO and DINOv2 (the paper uses average pooling)."""
        tokens, _ = self._embed(image)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0].float()

    def _embed(self, image: Float[Tensor, "N 3 H W"]) -> tuple[Float[Tensor, "N T C"], tuple[int, int]]:
        """Class token, registers and patch tokens; and the size of the patch grid.

        A side that is not a multiple of the patch size is resampled to the nearest multiple (ours).
        """
        rows, columns = (max(1, round(side / self.patch_px)) for side in image.shape[2:])
        size = (rows * self.patch_px, columns * self.patch_px)
        if image.shape[2:] != size:
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        patches = self.patch_embed(image).flatten(2).transpose(1, 2) + self._positions(rows, columns)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(image), -1, -1)
        if not self.num_registers:
            return torch.cat([first, patches], 1), (rows, columns)
        registers = self.register_tokens.expand(len(image), -1, -1)
        return torch.cat([first, registers, patches], 1), (rows, columns)

    def _positions(self, rows: int, columns: int) -> Float[Tensor, "1 P C"]:
        """Positional embeddings of the patches, interpolated bicubically from the learned grid."""
        return resample_positions(self.pos_embed[:, 1:], rows, columns)


def resample_positions(positions: Float[Tensor, "1 P C"], rows: int, columns: int) -> Float[Tensor, "1 T C"]:
    """Resample a square grid of positional embeddings to another grid, bicubically.

    Uses two matrix products, because the gradient of torch's bicubic sampling is not deterministic on a GPU.
    """
    side = round(positions.shape[1] ** 0.5)
    if (rows, columns) == (side, side):
        return positions
    grid = positions.unflatten(1, (side, side))
    vertical, horizontal = (
        _bicubic(side, target, positions.device, positions.dtype) for target in (rows, columns)
    )
    return torch.einsum("th,uw,nhwc->ntuc", vertical, horizontal, grid).flatten(1, 2)


@functools.lru_cache(maxsize=16)  # each copy to a GPU waits for it
def _bicubic(source: int, target: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "T S"]:
    """Bicubic weight of each `source` cell in each `target` cell, from the interpolation of unit vectors."""
    units = torch.eye(source)[None, :, :, None]
    weights = F.interpolate(units, size=(target, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T
    return weights.to(device, dtype)


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP with residual connections."""

    def __init__(self, dim: int, num_heads: int, *, has_layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim) if has_layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        layers = OrderedDict(fc1=nn.Linear(dim, MLP_RATIO * dim), act=nn.GELU())
        self.mlp = nn.Sequential(OrderedDict(layers, fc2=nn.Linear(MLP_RATIO * dim, dim)))
        self.ls2 = LayerScale(dim) if has_layer_scale else nn.Identity()

    def forward(self, tokens: Float[Tensor, "N T C"]) -> Float[Tensor, "N T C"]:
        """Updated tokens."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Float[Tensor, "N T C"]) -> Float[Tensor, "N T C"]:
        """Self-attention over all tokens."""
        parts = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))


def attend(
    query: Float[Tensor, "N H T D"], key: Float[Tensor, "N H T D"], value: Float[Tensor, "N H T D"]
) -> Float[Tensor, "N H T D"]:
    """Attention, whose result and gradient repeat their bytes on a GPU if `deterministic` is set.

    torch has algorithms for this, and takes others where operators that have none are only to warn.
    """
    if not query.is_cuda or torch.compiler.is_compiling() or torch.get_deterministic_debug_mode() != WARN:
        return F.scaled_dot_product_attention(query, key, value)
    torch.set_deterministic_debug_mode("error")
    try:
        attended = F.scaled_dot_product_attention(query, key, value)
    finally:
        torch.set_deterministic_debug_mode("warn")
    return with_strict_gradient(attended)


def with_strict_gradient(result: Tensor) -> Tensor:
    """The result of an operator, whose gradient takes no algorithm that does not repeat its bytes."""
    if (operator := result.grad_fn) is not None:
        operator.register_prehook(lambda *_: torch.set_deterministic_debug_mode("error"))
        operator.register_hook(lambda *_: torch.set_deterministic_debug_mode("warn"))
    return result


class LayerScale(nn.Module):
    """A learned scale for every channel of a residual branch (Touvron et al., 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), LAYER_SCALE_START))

    def forward(self, branch: Float[Tensor, "N T C"]) -> Float[Tensor, "N T C"]:
        """The branch, scaled."""
        return branch * self.gamma


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """Initialize as DINO does; the patch embedding keeps torch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
