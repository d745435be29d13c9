"""SwAV (Caron et al., 2020): one view predicts the prototype assignment of another view of the same image."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stages.backbone.batch_norm import kept_statistics, set_groups_of_pass, split_batch_norms
from stages.backbone.trunk import Trunk
from stages.core import distributed
from stages.core.device import autocast
from stages.core.step import Drawn, Moment
from stages.pretraining.encoder import Encoded, MultiCropEncoder
from stages.pretraining.figures import (
    Expected,
    Measured,
    alignment,
    count_chosen,
    instance_accuracy,
    take_usage,
    uniformity,
)
from stages.pretraining.method import Method
from stages.pretraining.views import Views, render
from stages.settings.schema_pretrain import Pretrain

NUM_WHOLE = 2  # large views per image, for which codes are computed


class SwAV(Method):
    """The encoder, the prototypes and, for small batches, a queue of past embeddings.

    Args:
        encoder: encoder to train.
        settings: `pretrain` of params.yaml.
        precision: precision of the forward passes; codes and loss are float32.
    """

    queue: Tensor
    assigned: Tensor

    def __init__(self, encoder: MultiCropEncoder, settings: Pretrain, *, precision: str) -> None:
        super().__init__()
        self.encoder = encoder
        split_batch_norms(encoder, settings.bn_splits)
        set_groups_of_pass(
            encoder, settings.bn_splits, distributed.num_passes(settings.batch_size, settings.micro_batch)
        )
        self._settings, self._own, self._precision = settings, settings.swav, precision
        self.prototypes = nn.Linear(settings.projection_dim, self._own.num_prototypes, bias=False)
        shape = (NUM_WHOLE, self._own.queue_size, settings.projection_dim)
        self.register_buffer("queue", torch.zeros(shape))  # newest last
        self.register_buffer("assigned", torch.zeros(self._own.num_prototypes))
        self._newest: Tensor | None = None

    @property
    def backbone(self) -> Trunk:
        """That of the encoder."""
        return self.encoder.backbone

    def networks(self) -> tuple[nn.Module, ...]:
        """The networks to compile."""
        return (self.encoder,)

    @property
    def expected(self) -> Expected:
        """The candidates are the prototypes. Codes use all alike, so their use tells of no collapse."""
        return Expected(num_candidates=self._own.num_prototypes)

    def draw(self, views: Views, num_images: int, moment: Moment) -> Drawn:
        """The large and the small views of a step; whether prototypes are frozen and codes use the queue.

        The queue is used once it is full.
        """
        own = self._own
        kinds = (
            (NUM_WHOLE, own.crop_area, self._settings.image_px),
            (own.local_crops, own.local_area, own.local_px),
        )
        numbers = [
            views.draw(num_images, (low, high), size_px, count)
            for count, (low, high), size_px in kinds
            if count
        ]
        num_passed = moment.steps * num_images * distributed.world_size()
        is_full = own.queue_size > 0 and num_passed >= own.queue_size
        has_queue = is_full and moment.epochs >= own.queue_from_epoch
        return Drawn(tuple(numbers), (moment.epochs < own.freeze_epochs, has_queue))

    @torch.no_grad()
    def targets(self, image: Float[Tensor, "n 3 H W"], drawn: Drawn) -> Float[Tensor, "n 2 P"]:
        """Codes of this process's share, from the whole batch, for passes of parts of it.

        The encoder sees the views once more for this, in the same passes.
        """
        self._normalise_prototypes()
        with kept_statistics(self.encoder):
            embedding = torch.cat(
                [
                    self._encode(image[rows], [one[:, :, rows] for one in drawn.numbers])[1]
                    for rows in distributed.passes(len(image), self._settings.micro_batch)
                ]
            )
        return self._targets(embedding[:, :NUM_WHOLE], has_queue=drawn.phase[1])

    def forward(
        self,
        image: Float[Tensor, "n 3 H W"],
        drawn: Drawn,
        rows: slice | None = None,
        targets: Float[Tensor, "n 2 P"] | None = None,
    ) -> Measured:
        """Loss and figures of this process's share of a batch, or of some of its images.

        Args:
            image: RGB in [0, 1].
            drawn: what `draw` has drawn, on the device.
            rows: images of this pass; None for all.
            targets: see `targets`; None to compute them.
        """
        own, (is_frozen, has_queue), numbers = self._own, drawn.phase, drawn.numbers
        start = distributed.rank() * len(image)
        if rows is not None:
            start += rows.start
            image, numbers = image[rows], tuple(one[:, :, rows] for one in numbers)
        if targets is None:
            self._normalise_prototypes()
        feature, embedding = self._encode(image, numbers)
        if targets is None:
            targets = self._targets(embedding[:, :NUM_WHOLE].detach(), has_queue=has_queue)
        codes = targets if rows is None else targets[rows]
        weight = self.prototypes.weight
        scores = embedding @ (weight.detach() if is_frozen else weight).T
        logits = scores / own.temperature
        self._count(logits[:, :NUM_WHOLE].detach())
        assert self._newest is not None
        (first, second), end = self._newest, start + len(image)
        return Measured(
            swapped_prediction(logits, codes),
            instance_accuracy(first[start:end], second, start),
            alignment(first[start:end], second[start:end]),
            uniformity(second),
            feature.detach()[:, 0],
        )

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def _targets(self, embedding: Float[Tensor, "n 2 D"], *, has_queue: bool) -> Float[Tensor, "n 2 P"]:
        """Codes of this process's share; keeps the embeddings of the whole batch for the queue."""
        self._newest = distributed.gather(embedding).transpose(0, 1)
        codes = self._codes(self._newest, has_queue=has_queue)
        return torch.stack([distributed.share(code) for code in codes], dim=1)

    def _encode(
        self, image: Float[Tensor, "n 3 H W"], numbers: Sequence[Float[Tensor, "R _ n"]]
    ) -> tuple[Float[Tensor, "n V C"], Float[Tensor, "n V D"]]:
        """Global features and unit embeddings of all views of each image, the large ones first."""
        sides = (self._settings.image_px, self._own.local_px)
        views = [render(image, one, side).transpose(0, 1) for one, side in zip(numbers, sides, strict=False)]
        with autocast(image.device, self._precision):
            encoded: Encoded = self.encoder(*views)
        feature, embedding = (part.unflatten(0, (len(image), -1)) for part in encoded)
        return feature, embedding

    @torch.no_grad()
    def _codes(self, batch: Float[Tensor, "2 N D"], *, has_queue: bool) -> list[Float[Tensor, "N P"]]:
        """Codes of both large views, computed together with the queue if it is used."""
        own, num_images = self._own, batch.shape[1]
        if has_queue:
            batch = torch.cat([self.queue, batch], dim=1)
        scores = batch @ self.prototypes.weight.T
        return [sinkhorn(view, own.epsilon, own.sinkhorn_iterations)[-num_images:] for view in scores]

    @torch.no_grad()
    def _count(self, logits: Float[Tensor, "n 2 P"]) -> None:
        self.assigned += distributed.total(count_chosen(logits.argmax(2), self._own.num_prototypes))

    @torch.no_grad()
    def after_step(self) -> None:
        """Replace the oldest embeddings of the queue by the newest."""
        assert self._newest is not None
        self.queue.copy_(torch.cat([self.queue, self._newest], dim=1)[:, self._newest.shape[1] :])

    def take_usage(self) -> float:
        """Effective share of prototypes that were nearest to some view since the last call.

        Computed from the perplexity of hard assignments, because soft predictions are nearly uniform early in
        training.
        """
        return take_usage(self.assigned)

    def heads(self) -> dict[str, Tensor]:
        """The projection head and the unit prototypes."""
        unit = F.normalize(self.prototypes.weight.detach(), dim=1)
        return {"prototypes.weight": unit, **self.encoder.heads()}


def sinkhorn(scores: Float[Tensor, "N P"], epsilon: float, iterations: int) -> Float[Tensor, "N P"]:
    """Codes: a soft assignment with equal mass for all prototypes (SwAV, Eq. 3 to 5).

    Computed in the log domain in float32, because exp(score / epsilon) could overflow.

    Args:
        scores: cosines of embeddings and prototypes.
        epsilon: entropy weight; smaller values give harder codes.
        iterations: number of normalizations over prototypes, then embeddings.

    Returns:
        Rows that sum to 1.
    """
    log_code = scores.float() / epsilon
    num_images, num_prototypes = scores.shape
    for _ in range(iterations):
        log_code = log_code - log_code.logsumexp(0, keepdim=True) - math.log(num_prototypes)
        log_code = log_code - log_code.logsumexp(1, keepdim=True) - math.log(num_images)
    return (log_code + math.log(num_images)).exp()


def swapped_prediction(logits: Float[Tensor, "n V P"], codes: Float[Tensor, "n A P"]) -> Float[Tensor, ""]:
    """Cross-entropy of the codes of the first A views with the predictions of all others (Eq. 2, 6)."""
    log_prediction = logits.log_softmax(2)
    num_coded, num_views = codes.shape[1], logits.shape[1]
    pairs = -torch.einsum("nap,nvp->av", codes, log_prediction) / len(logits)
    others = 1 - torch.eye(num_coded, num_views, device=logits.device)
    return (pairs * others).sum() / (num_coded * (num_views - 1))
