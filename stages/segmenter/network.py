"""The segmentation network: trunk, decoder, context module, image head (4.1, Figure 3)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stages.backbone.trunk import FeatureMaps, Trunk
from stages.core.device import autocast
from stages.imaging.batches import normalise
from stages.imaging.resample import enlarge, shrink
from stages.segmenter.context import ContextModule
from stages.segmenter.pixels import Pixels
from stages.settings.schema_train import Context, Metric


class FPN(nn.Module):
    """Feature pyramid: a 1x1 convolution per feature map, then upsampling and adding from the deepest map.

    The maps of a ViT have one size and are only added: a pyramid resampled from them (ViTDet, Li et al.,
    2022) would give the same sum, because 1x1 convolution and bilinear resampling commute.

    Args:
        channels: of the four feature maps.
        dim: channels of the result; paper: 256, PiCIE with ResNet-18: 128.
    """

    def __init__(self, channels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.lateral = nn.ModuleList(nn.Conv2d(inputs, dim, 1) for inputs in channels)

    def forward(self, maps: FeatureMaps) -> Float[Tensor, "N D H W"]:
        """One map at the resolution of the first."""
        sides = [lateral(feature_map) for lateral, feature_map in zip(self.lateral, maps, strict=True)]
        merged = sides[-1]
        for side in reversed(sides[:-1]):
            merged = side + enlarge(merged, (side.shape[2], side.shape[3]))
        return merged


class ImageHead(nn.Module):
    """Class scores of a whole view from its feature map (4.2.2).

    classical: S = GAP(conv(F')); modified: S = FC(ReLU(GAP(conv(F')))). The formula of the second is
    missing from the paper's text; ours follows "a ReLU layer and a linear layer after the original
    output". Two other interpretations: relu_gap_fc: S = FC(GAP(ReLU(conv(F')))), with ReLU per pixel
    before pooling; mlp: S = FC(ReLU(FC(GAP(F')))), with a hidden layer as wide as F'.
    """

    def __init__(self, dim: int, num_clusters: int, kind: str) -> None:
        super().__init__()
        hidden = dim if kind == "mlp" else num_clusters
        self.classify = nn.Conv2d(dim, hidden, 1)
        self.decide = (
            nn.Sequential(nn.ReLU(), nn.Linear(hidden, num_clusters))
            if kind != "classical"
            else nn.Identity()
        )
        self._pools_late = kind == "relu_gap_fc"

    def forward(self, feature_map: Float[Tensor, "N D H W"]) -> Float[Tensor, "N K"]:
        """Logits."""
        if self._pools_late:
            judged = F.relu(self.classify(feature_map)).mean((2, 3))
            return self.decide(judged).float()  # the ReLU of `decide` has no effect here
        # Pooling and a 1x1 convolution commute; pooled first, there is one pixel to convolve.
        return self.decide(self.classify(feature_map.mean((2, 3), keepdim=True)).flatten(1)).float()


class Segmenter(nn.Module):
    """Maps images to pixel features, and to class scores of whole views.

    Args:
        backbone: the trunk, usually pretrained.
        fpn_dim: D of the pixel features.
        feature_stride: image pixels per feature pixel.
        context: `train.context` of params.yaml; similarity `none` disables the module.
        num_view_clusters: number of classes of the image head; 0 disables it.
        head: kind of `ImageHead`.
        metric: similarity of pixels and centroids (`train.pixel_loss.metric`).
        freeze: frozen part: `none`, the trunk's `batch_norm` (statistics and affine parameters), or the
            whole `backbone`.
    """

    def __init__(
        self,
        backbone: Trunk,
        *,
        fpn_dim: int,
        feature_stride: int,
        context: Context,
        num_view_clusters: int = 0,
        head: str = "modified",
        metric: Metric,
        freeze: str,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = FPN(backbone.channels, fpn_dim)
        self.feature_stride, self.context_stride = feature_stride, context.stride
        self.context = ContextModule(fpn_dim, context) if context.similarity != "none" else None
        self.image_head = ImageHead(fpn_dim, num_view_clusters, head) if num_view_clusters else None
        self.metric = metric
        self._freeze = freeze
        if freeze == "backbone":
            backbone.requires_grad_(False)
        elif freeze == "batch_norm":
            for module in _batch_norms(backbone):
                module.requires_grad_(False)
        self.train()  # frozen statistics are kept from the first step

    def parts(self) -> list[nn.Module]:
        """The submodules to compile."""
        return [self.backbone, self.decoder, *([] if self.context is None else [self.context])]

    def forward(
        self,
        image: Float[Tensor, "N 3 S S"],
        colors: Float[Tensor, "N 3 h w"] | None = None,
        num_batches: int = 1,
    ) -> Float[Tensor, "N D H W"]:
        """F', before normalization to unit length; input RGB in [0, 1], output at 1 / feature_stride.

        Args:
            image: input of the trunk.
            colors: input of the context module for the same region; None for the image itself.
            num_batches: number of equal batches that the images are, one after another. In training, the
                batch norms of the trunk see them one by one; all else computes them at once.
        """
        parts = normalise(image).chunk(num_batches) if self.training else (normalise(image),)
        decoded = [self.decoder(self.backbone(part)) for part in parts]
        return self._refine(decoded[0] if len(parts) == 1 else torch.cat(decoded), image, colors)

    def _refine(
        self,
        decoded: Float[Tensor, "N D h w"],
        image: Float[Tensor, "N 3 S S"],
        colors: Float[Tensor, "N 3 c c"] | None,
    ) -> Float[Tensor, "N D H W"]:
        """Bring the decoder's output to the size of the result, and add the context."""
        height, width = image.shape[2] // self.feature_stride, image.shape[3] // self.feature_stride
        if decoded.shape[2] > height:
            decoded = shrink(decoded, (height, width))
        elif decoded.shape[2:] != (height, width):  # patches are larger than feature pixels
            decoded = enlarge(decoded, (height, width))
        if self.context is None:
            return decoded
        grid = (image.shape[2] // self.context_stride, image.shape[3] // self.context_stride)
        return self.context(decoded, image if colors is None else colors, grid)

    @property
    def has_frozen_statistics(self) -> bool:
        """Whether the batch norms keep the statistics of pretraining."""
        return self._freeze != "none"

    def train(self, mode: bool = True) -> "Segmenter":
        """Set the mode of the module; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self._freeze != "none":
            for module in _batch_norms(self.backbone):
                module.eval()
        return self

    def classify(self, image: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N K"]:
        """Logits of the image head; the network runs as it is, even if it is compiled.

        The views that guide a step are of another number at each, and each would be compiled anew.

        Raises:
            AssertionError: guidance is disabled, so there is no head.
        """
        assert self.image_head is not None
        with torch.compiler.set_stance("force_eager"):
            feature = self(image)
        return self.image_head(feature)


def _batch_norms(backbone: Trunk) -> list[nn.BatchNorm2d]:
    return [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def pixel_features(segmenter: Segmenter, image: Float[Tensor, "N 3 S S"], precision: str) -> Pixels:
    """Features of all pixels in float32; with the metric `dot` they are to be normalized to unit length."""
    with autocast(image.device, precision):
        feature = segmenter(image)
    return Pixels.of_map(feature.float(), is_unit=segmenter.metric == "dot")
