"""Mean field of the dense CRF with exact kernels, for GPUs (4.4; Kraehenbuehl & Koltun 2011).

`dense_crf` filters on a permutohedral lattice, which approximates the Gaussian kernels. Here all pairs of
pixels are computed: the smoothness kernel is separable, and the appearance kernel is a full matrix. If this
matrix fits into memory, it is computed once per image; otherwise each step recomputes it in row blocks. With
`backend: fused` it is never stored, and blocks of weights that do not matter are left out (`fused_crf`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from stages.core.memory import unused_bytes
from stages.postprocessing.pixel_blocks import appearance_features
from stages.settings.schema import Refine

BLOCK_BYTES = 1 << 30  # of a block of rows of the appearance kernel, in float32
ALIGNED_COLUMNS = 8  # of a product; tensor cores are used for multiples of it
MEMORY_SHARE = 0.5  # maximum share of unused device memory for the kernel of an image


class AppearanceKernel:
    """K(i, j) = exp(-|p_i - p_j|^2 / (2 s_appearance^2) - |c_i - c_j|^2 / (2 s_color^2)) of one image.

    Args:
        image: RGB, 0..255.
        appearance_px: s_appearance, in pixels.
        appearance_color: s_color, in RGB levels of 0..255.
        is_stored: whether to keep the matrix; by default, if it fits into the free device memory.
        dtype: of weights and values in products; by default float16 on a GPU, whose products are fastest in
            it (a weight in [0, 1] keeps three digits), and float32 elsewhere.
    """

    def __init__(
        self,
        image: UInt8[Tensor, "H W 3"],
        *,
        appearance_px: float,
        appearance_color: float,
        is_stored: bool | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        device = image.device
        features = appearance_features(image, appearance_px, appearance_color)
        half_squares, ones = features.square().sum(1, keepdim=True) / 2, torch.ones_like(features[:, :1])
        # left @ right^T is -|f_i - f_j|^2 / 2 in one product.
        self._left = torch.cat([features, -half_squares, ones], dim=1)
        self._right = torch.cat([features, ones, -half_squares], dim=1)
        self._dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
        count = len(features)
        self._block_rows = max(1, BLOCK_BYTES // (4 * count))
        if is_stored is None:
            is_stored = count**2 * self._dtype.itemsize <= MEMORY_SHARE * _free_bytes(device)
        self._stored = None
        if is_stored:
            stored = torch.empty(count, count, dtype=self._dtype, device=device)
            for block in self._blocks():
                torch.exp(self._left[block] @ self._right.T, out=stored[block])
            self._stored = stored
        # D^-1/2; each pixel is its own neighbor. D is summed in float32, for it may be the number of pixels,
        # more than float16 holds. `product` of `message` stays near its root: neighbors have a similar D.
        sums = [self._block(rows).sum(1, keepdim=True, dtype=torch.float32) for rows in self._blocks()]
        self.inverse_root = torch.cat(sums).clamp_min(1).rsqrt()

    def product(self, values: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        """K @ values in float32, from sums that must fit into the kernel's type."""
        padded = F.pad(values.to(self._dtype), (0, -values.shape[1] % ALIGNED_COLUMNS))
        if self._stored is not None:
            product = self._stored @ padded
        else:
            product = torch.cat([self._block(rows) @ padded for rows in self._blocks()])
        return product[:, : values.shape[1]].float()

    def message(self, marginals: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        """D^-1/2 K D^-1/2 @ marginals."""
        return self.inverse_root * self.product(self.inverse_root * marginals)

    def _blocks(self) -> list[slice]:
        count = len(self._left)
        return [slice(start, start + self._block_rows) for start in range(0, count, self._block_rows)]

    def _block(self, rows: slice) -> Float[Tensor, "R P"]:
        if self._stored is not None:
            return self._stored[rows]
        return (self._left[rows] @ self._right.T).exp_().to(self._dtype)


@torch.no_grad()
def exact_mean_field(
    image: UInt8[Tensor, "H W 3"], probabilities: Float[Tensor, "K H W"], settings: Refine
) -> Float[Tensor, "K H W"]:
    """Marginals after `iterations` mean-field steps; formula and arguments as in `dense_crf.mean_field`.

    Image and probabilities must be on the compute device.

    Cost: P^2 kernel values an image, P = H * W, and P^2 * K products a step.
    """
    num_clusters, height, width = probabilities.shape
    log_unary = probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
    message_of = _appearance_message(image, settings) if settings.appearance_weight > 0 else None
    rows, columns = (_smoothness(side, settings.smoothness_px, image.device) for side in (height, width))
    marginals = torch.softmax(log_unary, dim=0)
    for _ in range(settings.iterations):
        update = log_unary
        if settings.smoothness_weight > 0:
            update = update + settings.smoothness_weight * (rows @ marginals @ columns)
        if message_of is not None:
            message = message_of(marginals.flatten(1).T)
            update = update + settings.appearance_weight * message.T.view(num_clusters, height, width)
        marginals = torch.softmax(update, dim=0)
    return marginals


def _appearance_message(
    image: UInt8[Tensor, "H W 3"], settings: Refine
) -> Callable[[Float[Tensor, "P K"]], Float[Tensor, "P K"]]:
    """The product with D^-1/2 K D^-1/2 of the appearance kernel."""
    px, color = settings.appearance_px, settings.appearance_color
    if settings.backend == "fused":
        from stages.postprocessing.fused_crf import FusedKernel  # needs Triton, and nothing else here does

        return FusedKernel(appearance_features(image, px, color)).message
    return AppearanceKernel(image, appearance_px=px, appearance_color=color).message


def _smoothness(side: int, smoothness_px: float, device: torch.device) -> Float[Tensor, "S S"]:
    """One axis of D^-1/2 K D^-1/2 of the smoothness kernel, which is separable."""
    places = torch.arange(side, device=device)
    kernel = torch.exp(-((places[:, None] - places) / smoothness_px).square() / 2)
    inverse_root = kernel.sum(1).rsqrt()
    return inverse_root[:, None] * kernel * inverse_root


def _free_bytes(device: torch.device) -> float:
    return unused_bytes(device) if device.type == "cuda" else 1 << 30
