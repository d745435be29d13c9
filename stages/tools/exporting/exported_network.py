"""Normalization, network and clusters as one module that runs without this project."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from stages.imaging.batches import to_unit
from stages.prediction.scored_pixels import scored_pixels
from stages.segmenter.pixels import pixel_logits
from stages.tools.segmenting.trained_model import LONGEST_SIDE, TrainedModel


class ExportedNetwork(nn.Module):
    """Images of any size to cluster ids and scores at the same size, as `TrainedModel` computes them.

    Sizes are tensors all the way, because a traced module has no others: it works for images of any size.

    Args:
        model: the trained model, on the CPU.
    """

    centroids: Tensor
    merged: Tensor

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.segmenter, self.features = model.segmenter, model.features
        self.size_px, self.step = model.size_px, model.segmenter.context_stride
        self.register_buffer("centroids", model.centroids)
        self.register_buffer("merged", torch.from_numpy(model.legend.merged).long())

    def forward(
        self, images: UInt8[Tensor, "N H W 3"]
    ) -> tuple[UInt8[Tensor, "N H W"], Float[Tensor, "N K H W"]]:
        """Ids, of merged clusters the lowest; and scores: cosines or, by the metric, minus squared distances.

        Args:
            images: RGB.
        """
        sides = torch._shape_as_tensor(images)[1:3]
        small = _resample(to_unit(images), sides, self._working_size(sides.double()))
        pixels = scored_pixels(self.segmenter, small, "float32", **self.features._asdict())
        scores = pixel_logits(pixels, self.centroids, self.segmenter.metric).permute(0, 3, 1, 2)
        full = _resample(scores, torch._shape_as_tensor(scores)[2:], sides)
        return functional.embedding(full.argmax(1), self.merged[:, None])[..., 0].byte(), full

    def _working_size(self, sides: Float[Tensor, " 2"]) -> Tensor:
        """`TrainedModel.working_size`."""
        shorter, longer = torch.minimum(sides[0], sides[1]), torch.maximum(sides[0], sides[1])
        scale = torch.minimum(self.size_px / shorter, LONGEST_SIDE * self.size_px / longer)
        return ((sides * scale / self.step).round().clamp_min(1) * self.step).long()


def _resample(image: Float[Tensor, "N C H W"], sides: Tensor, size: Tensor) -> Float[Tensor, "N C h w"]:
    rows, columns = (_weights(sides[axis], size[axis]) for axis in (0, 1))
    return rows @ (image @ columns.T)


def _weights(source: Tensor, target: Tensor) -> Float[Tensor, "T S"]:
    """`interpolation_matrix` of whole images."""
    scale = source.float() / target.float()
    centre = (_count(target) + 0.5) * scale - 0.5
    centre = torch.minimum(centre.clamp_min(0), source.float() - 1)
    distance = (_count(source)[None] - centre[:, None]).abs()
    weights = (1 - distance / scale.clamp_min(1)).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)


def _count(length: Tensor) -> Float[Tensor, " L"]:
    return torch.arange(length).float()  # type: ignore[call-overload]  # a tensor is a number in a trace
