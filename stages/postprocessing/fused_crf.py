"""Products with the appearance kernel on a GPU, whose matrix is never stored (Triton)."""

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from stages.postprocessing.pixel_blocks import pair_blocks

BLOCK = 64  # pixels: rows and columns of a block of the matrix
CLUSTERS = 16, 64  # fewest and most that are multiplied at a time; fewer are padded, more take several turns
SMALLEST_WEIGHT = 1e-6  # blocks of the matrix in which every weight is smaller are left out


@triton.jit  # type: ignore[untyped-decorator]
def multiply_blocks(  # type: ignore[no-untyped-def]  # names and types of arguments are Triton's
    features,
    values,
    products,
    offsets,
    partners,
    schedule,
    num_pixels,
    num_clusters,
    block_size: tl.constexpr,
    clusters_at_once: tl.constexpr,
):
    """One block of rows of K @ values; the program (b, k) computes some clusters of block `schedule[b]`.

    Args:
        features: float32 [5, Q], times sqrt(log2(e)), so that a weight is exp2(-d^2 / 2).
        values: float16 or float32 [Q, K].
        products: float32 [Q, K].
        offsets: of `BlockPairs`.
        partners: of `BlockPairs`.
        schedule: of `BlockPairs`.
        num_pixels: Q.
        num_clusters: K, a multiple of `clusters_at_once`.
        block_size: pixels of a block, a power of two of at least 16.
        clusters_at_once: clusters of this program, likewise.
    """
    block = tl.load(schedule + tl.program_id(0))
    clusters = tl.program_id(1) * clusters_at_once + tl.arange(0, clusters_at_once)
    rows = block * block_size + tl.arange(0, block_size)
    y = tl.load(features + rows)
    x = tl.load(features + num_pixels + rows)
    r = tl.load(features + 2 * num_pixels + rows)
    g = tl.load(features + 3 * num_pixels + rows)
    b = tl.load(features + 4 * num_pixels + rows)
    # -d^2 / 2 = f_i . f_j - |f_i|^2 / 2 - |f_j|^2 / 2 takes half the operations of the differences. With the
    # middle of these rows as origin it loses few digits: even of noise in all colors a weight has three.
    middle_y, middle_x = tl.sum(y) / block_size, tl.sum(x) / block_size
    middle_r, middle_g = tl.sum(r) / block_size, tl.sum(g) / block_size
    middle_b = tl.sum(b) / block_size
    y, x, r, g, b = y - middle_y, x - middle_x, r - middle_r, g - middle_g, b - middle_b
    half_square = (y * y + x * x + r * r + g * g + b * b) / 2
    total = tl.zeros([block_size, clusters_at_once], tl.float32)
    for place in range(tl.load(offsets + block), tl.load(offsets + block + 1)):
        others = tl.load(partners + place) * block_size + tl.arange(0, block_size)
        part = tl.load(values + others[:, None] * num_clusters + clusters[None, :])
        other_y = tl.load(features + others) - middle_y
        other_x = tl.load(features + num_pixels + others) - middle_x
        other_r = tl.load(features + 2 * num_pixels + others) - middle_r
        other_g = tl.load(features + 3 * num_pixels + others) - middle_g
        other_b = tl.load(features + 4 * num_pixels + others) - middle_b
        other_half = other_y * other_y + other_x * other_x + other_r * other_r
        other_half = (other_half + other_g * other_g + other_b * other_b) / 2
        exponent = -half_square[:, None] - other_half[None, :]
        exponent = tl.fma(y[:, None], other_y[None, :], exponent)
        exponent = tl.fma(x[:, None], other_x[None, :], exponent)
        exponent = tl.fma(r[:, None], other_r[None, :], exponent)
        exponent = tl.fma(g[:, None], other_g[None, :], exponent)
        exponent = tl.fma(b[:, None], other_b[None, :], exponent)
        total += tl.dot(tl.exp2(exponent).to(part.dtype), part, input_precision="ieee")
    tl.store(products + rows[:, None] * num_clusters + clusters[None, :], total)


class FusedKernel:
    """The appearance kernel of one image, whose weights are computed where they are used.

    As `exact_crf.AppearanceKernel`, but K @ values may lack up to `SMALLEST_WEIGHT` times the sum of the
    values, because blocks of smaller weights are left out. The sums have a fixed order, so results repeat.

    Args:
        features: `appearance_features` of the image, on a GPU (or anywhere in Triton's interpreter).
        dtype: of weights and values in products; sums are float32.
    """

    def __init__(self, features: Float[Tensor, "P 5"], *, dtype: torch.dtype = torch.float16) -> None:
        self._count, self._dtype = len(features), dtype
        self._pairs = pair_blocks(features, BLOCK, SMALLEST_WEIGHT)
        self._features = (self._pairs.features * math.sqrt(math.log2(math.e))).T.contiguous()
        self._place = self._pairs.order.argsort()[: self._count]  # of each pixel
        self.inverse_root = self.product(torch.ones_like(features[:, :1])).clamp_min(1).rsqrt()

    def product(self, values: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        """K @ values, in float32."""
        fewest, most = CLUSTERS
        clusters = min(most, max(fewest, 1 << (values.shape[1] - 1).bit_length()))
        missing = (0, -values.shape[1] % clusters, 0, len(self._pairs.order) - self._count)
        given = F.pad(values.to(self._dtype), missing)[self._pairs.order]
        products = torch.empty(given.shape, dtype=torch.float32, device=given.device)
        with torch.cuda.device_of(given):  # Triton starts kernels on the current GPU of the thread
            multiply_blocks[(len(self._pairs.schedule), given.shape[1] // clusters)](
                self._features,
                given,
                products,
                self._pairs.offsets,
                self._pairs.partners,
                self._pairs.schedule,
                *given.shape,
                BLOCK,
                clusters,
            )
        return products[self._place, : values.shape[1]]

    def message(self, marginals: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        """D^-1/2 K D^-1/2 @ marginals."""
        return self.inverse_root * self.product(self.inverse_root * marginals)
