"""Context-aware embedding (4.3): every pixel attends to pixels with similar features, color and position."""

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stages.core.transfer import constant
from stages.imaging.resample import enlarge, shrink
from stages.settings.schema_train import Context

# Linear sRGB to XYZ under D65 (IEC 61966-2-1), each row divided by the white point.
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
LINEAR_BELOW = (6 / 29) ** 3  # linear part of the cube root (CIE 15)


def to_lab(image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    """sRGB in [0, 1] to L*a*b* over 100: lightness in [0, 1], a and b within about +-1."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    rgb_to_xyz, white = (constant(one, image.device, image.dtype) for one in (RGB_TO_XYZ, WHITE))
    matrix = rgb_to_xyz / white[:, None]
    x, y, z = torch.einsum("dc,nchw->dnhw", matrix, linear)
    x, y, z = (
        torch.where(
            value > LINEAR_BELOW,
            value.clamp_min(LINEAR_BELOW) ** (1 / 3),
            value / (3 * (6 / 29) ** 2) + 4 / 29,
        )
        for value in (x, y, z)
    )
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1) / 100


EPSILON = 1e-6
KERNELS = (
    "appearance_weight",
    "proximity_weight",
    "position_bandwidth",
    "color_bandwidth",
    "proximity_bandwidth",
)
WEIGHTS = KERNELS[:2]


def cosine_similarity(feature: Float[Tensor, "N P D"]) -> Float[Tensor, "N P P"]:
    """f^s: cosine of every pair of pixel features (4.3)."""
    unit = F.normalize(feature, dim=2)
    return torch.bmm(unit, unit.transpose(1, 2))


def appearance_kernel(
    color: Float[Tensor, "N P 3"],
    apart: Float[Tensor, "P P"],
    log_weight: Float[Tensor, ""],
    position_slope: Float[Tensor, ""],
    color_slope: Float[Tensor, ""],
) -> Float[Tensor, "N P P"]:
    """w1 f^a = w1 exp(-|p_i - p_j|^2 / 2 theta_alpha^2 - |I_i - I_j|^2 / 2 theta_beta^2) (Eq. 8).

    The weight is part of the exponent, which spares a product of all pairs.

    Args:
        color: RGB in [0, 1].
        apart: |p_i - p_j|^2, `squared_distance` of the positions in shorter sides of the image.
        log_weight: log w1.
        position_slope: `slope` of theta_alpha, in shorter sides of the image.
        color_slope: `slope` of theta_beta, in the unit of `color`.
    """
    near = torch.addcmul(log_weight, apart, position_slope)
    return torch.addcmul(near, squared_distance(color), color_slope).exp()


def proximity_kernel(
    apart: Float[Tensor, "P P"], log_weight: Float[Tensor, ""], position_slope: Float[Tensor, ""]
) -> Float[Tensor, "P P"]:
    """w2 f^p = w2 exp(-|p_i - p_j|^2 / 2 theta_gamma^2) (Eq. 9); arguments as of `appearance_kernel`."""
    return torch.addcmul(log_weight, apart, position_slope).exp()


def slope(log_bandwidth: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """-1 / 2 theta^2, the factor of a squared distance in the exponent, from log theta."""
    return -0.5 * (-2 * log_bandwidth).exp()


def row_normalise(affinity: Float[Tensor, "N P P"]) -> Float[Tensor, "N P P"]:
    """Normalize rows of non-negative affinities to sum to 1."""
    return affinity / (affinity.sum(2, keepdim=True) + EPSILON)


class ContextModule(nn.Module):
    """x'_i = upsampled sum_j w_ij g(x_j), added to a projection of the feature map (4.3, 5.1).

    The five kernel parameters are learned; they are stored as logarithms, so they stay positive. The
    formulas that combine the similarities are missing from the paper's text. With the product, both
    similarities must be high; with the sum, one is enough.

    Args:
        dim: D of the feature map.
        settings: `train.context` of params.yaml.
    """

    def __init__(self, dim: int, settings: Context) -> None:
        super().__init__()
        self._settings = settings
        self.value = nn.Conv2d(dim, dim, 1)
        self.project = nn.Conv2d(dim, dim, 1) if settings.residual == "add" else None
        self.merge = nn.Conv2d(2 * dim, dim, 1) if settings.residual == "concat" else None
        if settings.start == "identity":
            # Zero initialization, as in non-local networks: the module starts as the identity.
            nn.init.zeros_(self.value.weight)
            nn.init.zeros_(self.value.bias)  # type: ignore[arg-type]
            keep = self.project if self.project is not None else self.merge
            assert keep is not None
            nn.init.dirac_(keep.weight)  # in `merge`, the feature map is the first half of the input
            nn.init.zeros_(keep.bias)  # type: ignore[arg-type]
        start = torch.tensor([getattr(settings, name) for name in KERNELS])
        self.log_kernel = nn.Parameter(start.log(), requires_grad=settings.learn_kernels)

    def forward(
        self, feature_map: Float[Tensor, "N D H W"], image: Float[Tensor, "N 3 S S"], grid: tuple[int, int]
    ) -> Float[Tensor, "N D H W"]:
        """The refined feature map.

        Args:
            feature_map: output of the decoder.
            image: RGB in [0, 1], of any size; source of the colors.
            grid: (rows, columns) of the pixels that attend to each other.
        """
        coarse = shrink(feature_map, grid)
        with torch.autocast(feature_map.device.type, enabled=False):
            weights = self.affinity(coarse.float(), shrink(image.float(), grid))
        value = self.value(coarse)
        context = torch.bmm(weights.to(value.dtype), value.flatten(2).transpose(1, 2))
        context = context.transpose(1, 2).view_as(value)
        context = enlarge(context, (feature_map.shape[2], feature_map.shape[3]))
        if self.merge is not None:
            return self.merge(torch.cat([feature_map, context], dim=1))
        return context + self.project(feature_map) if self.project is not None else context

    def affinity(
        self, feature_map: Float[Tensor, "N D H W"], image: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, "N P P"]:
        """w_ij, the attention weights; by `norm`, rows sum to 1 (l1, softmax) or are divided by P (count).

        Negative cosines count as 0: the paper's formula is lost, and weights must not be negative (ours).
        """
        similarity, settings = self._settings.similarity, self._settings
        if similarity == "raw":
            combined = self.raw_similarity(image)
        else:
            combined = cosine_similarity(feature_map.flatten(2).transpose(1, 2)).relu()
        if similarity == "both":
            raw = self.raw_similarity(image)
            if settings.combine == "log_sum":
                # As an attention bias: the softmax yields the product of exp(f^s / temperature) and f^r.
                return torch.softmax(combined / settings.temperature + (raw + EPSILON).log(), dim=2)
            combined = combined * raw if settings.combine == "product" else combined + raw
        if settings.norm == "softmax":
            return torch.softmax(combined / settings.temperature, dim=2)
        if settings.norm == "l1":
            return row_normalise(combined)
        return combined / combined.shape[2] if settings.norm == "count" else combined

    def raw_similarity(self, image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P P"]:
        """f^r = w1 f^a + w2 f^p (Eq. 7)."""
        if self._settings.color == "lab":
            image = to_lab(image)
        color = image.flatten(2).transpose(1, 2)
        apart = grid_distances(image.shape[2], image.shape[3], image.device, image.dtype)
        weights, bandwidths = self.log_kernel.split([len(WEIGHTS), len(KERNELS) - len(WEIGHTS)])
        appearance, proximity = weights.unbind()
        position_slope, color_slope, proximity_slope = slope(bandwidths).unbind()
        return appearance_kernel(color, apart, appearance, position_slope, color_slope) + proximity_kernel(
            apart, proximity, proximity_slope
        )

    def kernels(self) -> dict[str, float]:
        """The five kernel parameters: weights, and bandwidths in shorter image sides and color units.

        Empty where no kernel takes part (`similarity: cnn`).
        """
        if self._settings.similarity == "cnn":
            return {}
        return dict(zip(KERNELS, self.log_kernel.exp().tolist(), strict=True))

    @torch.no_grad()
    def project_kernels(self) -> None:
        """Move the kernel parameters back into `kernel_bounds`; called after each step of the optimizer.

        A clamp in the forward pass would have no gradient outside the bounds, so a parameter that left them
        could not return. Where only the ratio of the two weights has an effect, their product is kept at its
        start value, because gradients leave it to chance.
        """
        settings = self._settings
        if not settings.learn_kernels:
            return
        low, high = (math.log(bound) for bound in settings.kernel_bounds)
        if self._only_ratio_counts():
            weights = self.log_kernel[: len(WEIGHTS)]
            middle = sum(math.log(getattr(settings, name)) for name in WEIGHTS) / 2
            reach = min(high - middle, middle - low)
            from_middle = (weights - weights.mean()).clamp(-reach, reach)
            weights.copy_(middle + from_middle)
        self.log_kernel.clamp_(low, high)

    def _only_ratio_counts(self) -> bool:
        """Whether a common factor of the two weights has no effect, because rows are normalized."""
        settings = self._settings
        if settings.similarity == "both" and settings.combine == "log_sum":
            return True
        return settings.norm == "l1" and (settings.combine == "product" or settings.similarity == "raw")


def squared_distance(points: Float[Tensor, "N P C"]) -> Float[Tensor, "N P P"]:
    """|a|^2 + |b|^2 - 2ab for all pairs, with one matrix product; clamped to be non-negative."""
    squared = points.square().sum(2)
    apart = torch.baddbmm(squared[:, :, None] + squared[:, None], points, points.transpose(1, 2), alpha=-2)
    return apart.clamp_min_(0)


def grid_distances(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "P P"]:
    """`squared_distance` of the pixels of a grid, in shorter sides of the image.

    One unit for both axes keeps kernels round in any image.
    """
    # While `export` traces the network, the sides are not numbers and the grid is made anew for each image.
    make = _distances if torch.jit.is_tracing() else _kept_distances  # type: ignore[attr-defined]
    return make(rows, columns, device, dtype)


def _distances(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "P P"]:
    sides = [torch.arange(side, device=device) for side in (rows, columns)]
    unit = torch.minimum(*(side[-1] for side in sides)) + 1
    places = torch.meshgrid(*((side / unit).to(dtype) for side in sides), indexing="ij")
    return squared_distance(torch.stack(places, dim=2).flatten(0, 1)[None])[0]


_kept_distances = functools.lru_cache(maxsize=8)(_distances)  # training has few sizes, `segment` any number
