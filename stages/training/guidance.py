"""Guidance by pseudo-labels of whole views (4.2.2)."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.core import distributed
from stages.core.device import autocast, torch_generator
from stages.core.step import Drawn
from stages.imaging.batches import ImageSource
from stages.imaging.photometric import Jitter, apply_colour, draw_jitter
from stages.imaging.resample import Boxes, resample, unstacked
from stages.pseudo_labels.pyramid import NOT_KEPT, has_parts, view_boxes
from stages.segmenter.network import Segmenter
from stages.settings.schema_train import ImageLoss
from stages.settings.section import Photometric
from stages.training.losses import cluster_weights, guidance_loss

FEWEST_VIEWS = 2  # of a batch, for batch norm
MEASURED_VIEWS = 256  # maximum number of held-out views for measuring the head after each epoch
# The weight `auto` (ours). The bounds lie about the sets of docs/results.md: SIFT Flow (stability 0.59 to
# 0.62), where guidance costs accuracy; four kinds of photographs (stability 0.71 to 0.81, position 0.03 to
# 0.04), where 0.3 gains most; and frames of driving (0.73, 0.21), where 0.3 harms.
MOST_WEIGHT = 0.3
STABILITY_FROM, STABILITY_TO = 0.6, 0.75
POSITION_FROM, POSITION_TO = 0.1, 0.2


class LabelFigures(NamedTuple):
    """What `label` says of the pseudo-labels: agreements, 0 by chance, 1 if identical."""

    stability: float  # with a second clustering; always 1 with the centers of a classifier
    agreement_with_position: float  # with the position of the view in its image


def guidance_weight(
    weight: float | Literal["auto"], figures: LabelFigures, kept_views: Int[np.ndarray, "N V"]
) -> float:
    """The weight of guidance, lambda of Eq. 5; `auto` takes it from the pseudo-labels (ours).

    Guidance is worth as much as the pseudo-labels are. Those that a second k-means does not find again are
    chance: the weight is 0 up to STABILITY_FROM, and rises linearly to MOST_WEIGHT at STABILITY_TO. Those
    that follow the position of a view name places in the frame, and no kinds of images: from POSITION_FROM
    on the weight falls, to 0 at POSITION_TO. Where only whole images guide, positions do not matter.

    Args:
        weight: `train.image_loss.weight` of params.yaml.
        figures: of `label`.
        kept_views: pseudo-label of each kept view, `NOT_KEPT` elsewhere.
    """
    if weight != "auto":
        return weight
    stable = (figures.stability - STABILITY_FROM) / (STABILITY_TO - STABILITY_FROM)
    placed = (figures.agreement_with_position - POSITION_FROM) / (POSITION_TO - POSITION_FROM)
    if not has_parts(kept_views):
        placed = 0.0
    return MOST_WEIGHT * min(1.0, max(0.0, stable)) * min(1.0, max(0.0, 1 - placed))


class Guidance:
    """The image loss of one training run, and its views.

    Args:
        settings: `train.image_loss` of params.yaml.
        strengths: strengths of the color augmentation.
        kept_views: pseudo-label of each kept view, `NOT_KEPT` elsewhere.
        weight: lambda of Eq. 5 after the warm-up, from `guidance_weight`.
        num_labels: number of pseudo-labels.
        crop_ratio: crop ratio of the pyramid views.
        seed: seed of the held-out split, and of the views that are measured.
        precision: precision of the forward passes.
    """

    def __init__(
        self,
        settings: ImageLoss,
        strengths: Photometric,
        kept_views: Int[Tensor, "N V"],
        *,
        weight: float,
        num_labels: int,
        crop_ratio: float,
        seed: int,
        precision: str,
    ) -> None:
        self._settings, self._strengths, self._crop_ratio = settings, strengths, crop_ratio
        self._weight, self._precision, self._seed = weight, precision, seed
        count = len(kept_views)
        order = torch.randperm(count, generator=torch_generator(seed, "train", "held out"))
        is_held_out = torch.zeros(count, 1, dtype=torch.bool)
        is_held_out[order[: round(settings.held_out * count)]] = True
        self._guiding = kept_views.masked_fill(is_held_out, NOT_KEPT)
        self._held_out = kept_views.masked_fill(~is_held_out, NOT_KEPT)
        counts = torch.bincount(self._guiding[self._guiding >= 0], minlength=num_labels)
        # A label that no view has gets no weight, so smoothing pulls no view to it; only ratios count.
        self._label_weight = cluster_weights(counts, settings.balance) * (counts > 0)

    def weight(self, epochs: float) -> float:
        """Lambda of Eq. 5 after `epochs` epochs, with linear warm-up."""
        warmup = self._settings.warmup_epochs
        return self._weight * (min(1.0, epochs / warmup) if warmup else 1.0)

    def draw(
        self, rows: Int[Tensor, " N"], epochs: float, generator: torch.Generator, num_passes: int = 1
    ) -> Drawn:
        """Lambda of a step and this process's share of its views; whether there are any.

        The number of views differs from batch to batch. Batch norm takes its statistics from them, so they
        are not filled up to a fixed number. With several passes there are two tensors for each: `pooled`
        views go with their images; others are spread evenly, over fewer passes if there are few.

        Args:
            rows: data-set indices of the whole batch.
            epochs: epochs so far, see `weight`.
            generator: random generator of the views, the same in every process.
            num_passes: passes of this process's share.
        """
        weight, kept = torch.tensor(self.weight(epochs)), self._guiding[rows]
        is_sampled = self._settings.views == "sample"
        row, view = draw_guides(kept, generator) if is_sampled else all_guides(kept)
        if not self._weight or len(row) < FEWEST_VIEWS:
            return Drawn((weight,), (False,))
        jitter = draw_jitter(len(row), self._strengths, self._settings.view_px, generator)
        numbers = torch.stack([*jitter, *self._boxes(view)])
        drawn = []
        for first, mine in self._passes(row, len(rows), num_passes):
            drawn += [torch.stack([row[mine] - first, kept[row, view][mine]]), numbers[:, mine]]
        return Drawn((weight, *drawn), (True,))

    def _passes(
        self, row: Int[Tensor, " M"], num_rows: int, num_passes: int
    ) -> list[tuple[int, Int[Tensor, " m"]]]:
        """The views of each pass of this process, and the row in the batch that its own rows count from."""
        world, rank = distributed.world_size(), distributed.rank()
        shares = torch.arange(num_rows).tensor_split(world)
        first = int(shares[rank][0])
        if self._settings.views == "pooled":
            parts = shares[rank].tensor_split(num_passes)
            return [(int(part[0]), torch.isin(row, part).nonzero().flatten()) for part in parts]
        of_process = [torch.isin(row, one).nonzero().flatten() for one in shares]
        # So many passes, alike in all processes, that batch norm has two views or more in each.
        most = max(map(len, of_process))
        parts = of_process[rank].tensor_split(max(1, min(num_passes, most // FEWEST_VIEWS)))
        return [(first, part) for part in parts]

    def loss(
        self,
        segmenter: Segmenter,
        image: Float[Tensor, "N 3 H W"],
        drawn: Drawn,
        whole_map: Float[Tensor, "N D H W"],
        number: int = 0,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """Lambda L_img (Eq. 5, 6), L_img, the head's accuracy on kept views; zeros if the pass has none.

        The sum over passes is the value of the batch.

        Args:
            segmenter: with an image head, or without one.
            image: this process's share of the batch.
            drawn: what `draw` has drawn, on the device.
            whole_map: F' of the whole images of the pass, for `pooled` views.
            number: of the pass.
        """
        weight, guides = drawn.numbers[0], drawn.numbers[1 + 2 * number : 3 + 2 * number]
        if not guides or segmenter.image_head is None:
            zero = torch.zeros((), device=image.device)
            return zero, zero, zero
        (here, label), numbers = guides
        parts = iter(numbers.unbind())
        colours, boxes = unstacked(Jitter, parts), unstacked(Boxes, parts)
        if self._settings.views == "pooled":
            cut = self._pool(whole_map[here], boxes)
        else:
            cut = apply_colour(self._cut(image[here], boxes, colours.blur_sigma_px), colours)
        with autocast(image.device, self._precision):
            logits = (
                segmenter.image_head(cut) if self._settings.views == "pooled" else segmenter.classify(cut)
            )
        self._label_weight = self._label_weight.to(image.device)
        labels = [one[1] for one in drawn.numbers[1::2]]
        whole = torch.cat(labels) if len(labels) > 1 else None
        loss, accuracy = guidance_loss(
            logits, label, self._label_weight, self._settings.label_smoothing, whole
        )
        return weight * loss, loss, accuracy

    @torch.no_grad()
    def held_out_accuracy(self, segmenter: Segmenter, images: ImageSource, batch_size: int) -> float | None:
        """Accuracy of the head on held-out views; None if there are none."""
        rows, view = all_guides(self._held_out)
        if segmenter.image_head is None or not len(rows):
            return None
        generator = torch_generator(self._seed, "train", "measured views")
        chosen = torch.randperm(len(rows), generator=generator)[:MEASURED_VIEWS].sort().values
        rows, view = rows[chosen], view[chosen]
        segmenter.eval()
        right = 0
        batches = rows.split(batch_size)
        for here, shown, image in zip(batches, view.split(batch_size), images.batches(batches), strict=True):
            cut = self._cut(image, self._boxes(shown).to(image.device))
            with autocast(image.device, self._precision):
                logits = segmenter.classify(cut)
            right += int((logits.argmax(1).cpu() == self._held_out[here, shown]).sum())
        segmenter.train()
        return right / len(rows)

    def _cut(
        self, image: Float[Tensor, "N 3 H W"], boxes: Boxes, blur_sigma_px: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, "N 3 S S"]:
        """Each pyramid view as a separate image (4.2.1)."""
        return resample(image, boxes, (self._settings.view_px, self._settings.view_px), blur_sigma_px)

    def _pool(self, whole_map: Float[Tensor, "N D H W"], boxes: Boxes) -> Float[Tensor, "N D h w"]:
        """Crop each view from the feature map of the whole image, at half its side lengths."""
        size = (max(1, whole_map.shape[2] // 2), max(1, whole_map.shape[3] // 2))
        return resample(whole_map.float(), boxes, size)

    def _boxes(self, view: Int[Tensor, " N"]) -> Boxes:
        """Box of each view in its image (4.2.1)."""
        return Boxes.of(view_boxes(self._crop_ratio)[view])


def draw_guides(
    kept: Int[Tensor, "N V"], generator: torch.Generator
) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """Draw one random kept view for each image that has any.

    Args:
        kept: pseudo-label of each kept view, `NOT_KEPT` for other views.
        generator: the only source of randomness.

    Returns:
        The rows of those images, and the view index of each.
    """
    chances = torch.rand(kept.shape, generator=generator).masked_fill(kept < 0, -1.0)
    best, view = chances.max(dim=1)
    rows = torch.nonzero(best >= 0).flatten()
    return rows, view[rows]


def all_guides(kept: Int[Tensor, "N V"]) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """Every kept view: its row and its view index."""
    rows, view = torch.nonzero(kept >= 0).unbind(1)
    return rows, view
