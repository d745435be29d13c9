"""DenseCL (Wang et al., 2021): MoCo v2 with a second contrast, between the cells of the last feature map."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stages.core.step import Drawn, Moment
from stages.pretraining.encoder import DenseEncoded
from stages.pretraining.figures import Measured
from stages.pretraining.moco import MoCo
from stages.pretraining.views import Views


class DenseCL(MoCo[DenseEncoded]):
    """The two encoders and two queues: of keys of images, and of keys of cells, one for each image.

    A cell's positive is the cell of the other view that is nearest in the backbone's own features, so no
    geometry between the views is needed. Its negatives are the pooled cells of other images.
    """

    QUEUES = ("queue", "dense_queue")
    dense_queue: Tensor
    _dense_weight: Tensor | None = None  # of the current step

    @property
    def view_px(self) -> int:
        """Side of a view."""
        return self._settings.dense.image_px

    def draw(self, views: Views, num_images: int, moment: Moment) -> Drawn:
        """The weight of the loss of cells, then as MoCo v2."""
        own = self._settings.densecl
        share = min(1.0, moment.epochs / own.warmup_epochs) if own.warmup_epochs else 1.0
        return super().draw(views, num_images, moment).after(torch.tensor(own.weight * share))

    def targets(self, image: Float[Tensor, "n 3 H W"], drawn: Drawn) -> list[DenseEncoded]:
        """As of MoCo v2."""
        return super().targets(image, drawn.without(1))

    def forward(
        self,
        image: Float[Tensor, "n 3 H W"],
        drawn: Drawn,
        rows: slice | None = None,
        targets: Sequence[DenseEncoded] | None = None,
    ) -> Measured:
        """Loss and figures of this process's share of a batch, or of some of its images."""
        self._dense_weight = drawn.numbers[0]
        return super().forward(image, drawn.without(1), rows, targets)

    def _recognise(
        self, view: Float[Tensor, "n 3 S S"], key: DenseEncoded, start: int
    ) -> tuple[Tensor, Tensor, DenseEncoded]:
        """(1 - lambda) times the loss of images + lambda times that of cells (DenseCL, 3.3)."""
        loss, accuracy, query = super()._recognise(view, key, start)
        first = self._start(key, start)
        own = DenseEncoded(*(part[first : first + len(view)] for part in key))
        dense_loss = dense_info_nce(
            query.cell,
            matched(own.cell, nearest_cells(query.cell_feature, own.cell_feature)),
            key.pooled,
            self.dense_queue,
            self._settings.temperature,
            batch_negatives=self._settings.batch_negatives,
            start=first,
        )
        assert self._dense_weight is not None
        loss = torch.lerp(loss, dense_loss, self._dense_weight)
        return loss, accuracy, query

    def _newest(self, key: DenseEncoded) -> tuple[Tensor, ...]:
        return key.embedding, key.pooled


@torch.no_grad()
def nearest_cells(query: Float[Tensor, "n S C"], key: Float[Tensor, "n S C"]) -> Int[Tensor, "n S"]:
    """Index of the key cell with the largest cosine, for each query cell (DenseCL, 3.4).

    Args:
        query: unit cells of the query backbone.
        key: unit cells of the key backbone, of the same images.
    """
    return (query @ key.transpose(1, 2)).argmax(2)


def matched(cell: Float[Tensor, "n S D"], index: Int[Tensor, "n S"]) -> Float[Tensor, "n S D"]:
    """The cells of these indices."""
    return cell.gather(1, index[:, :, None].expand(-1, -1, cell.shape[2]))


def dense_info_nce(
    query: Float[Tensor, "n S D"],
    positive: Float[Tensor, "n S D"],
    pooled: Float[Tensor, "N D"],
    queue: Float[Tensor, "Q D"],
    temperature: float,
    *,
    batch_negatives: bool,
    start: int = 0,
) -> Float[Tensor, ""]:
    """InfoNCE loss of cells (DenseCL, 3.3), the mean over all cells.

    Args:
        query: unit cells of one view of some images.
        positive: unit cell of the other view for each of them.
        pooled: unit mean cell of each image of the batch; row `start` + i belongs to query image i.
        queue: unit mean cells of other images.
        temperature: softmax temperature.
        batch_negatives: whether the mean cells of the batch's other images are also negatives, as for images.
        start: row of the first query image in `pooled`.
    """
    candidates = [(query * positive).sum(2, keepdim=True)]
    if batch_negatives:
        rows = torch.arange(len(pooled), device=query.device)
        is_own = rows == start + torch.arange(len(query), device=query.device)[:, None]
        candidates.append((query @ pooled.T).masked_fill(is_own[:, None], -torch.inf))
    candidates.append(query @ queue.T)
    logits = (torch.cat(candidates, dim=2) / temperature).flatten(0, 1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=query.device))
