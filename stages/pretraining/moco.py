"""MoCo v2 (He et al., 2020; Chen et al., 2020): a query encoder learns to identify the key of its image.

The paper uses it as the instance-level self-supervised method (4.1, 5.1).
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Generic

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stages.backbone.batch_norm import set_groups_of_pass, split_batch_norms
from stages.backbone.trunk import Trunk
from stages.core import distributed
from stages.core.device import autocast
from stages.core.step import Drawn, Moment
from stages.pretraining.encoder import Encodings, ViewEncoder
from stages.pretraining.figures import Expected, Measured, alignment, uniformity
from stages.pretraining.info_nce import info_nce
from stages.pretraining.method import Method
from stages.pretraining.views import Views, render
from stages.settings.schema_pretrain import Pretrain

LARGEST_QUEUE = 65536


class MoCo(Method, Generic[Encodings]):
    """The two encoders and the queue of past keys.

    Shared batch-norm statistics would let a query identify its key. The batch is therefore split into groups
    with separate statistics, and the keys are shuffled between groups. MoCo does this across GPUs; here it
    works within one device or across processes.

    Args:
        encoder: the query encoder; the key encoder starts as its copy.
        settings: `pretrain` of params.yaml.
        queue_size: length Q of each queue.
        key_momentum: share of the old key encoder that each step keeps.
        precision: precision of the forward passes.
        generator: draws the initial queues.

    Attributes:
        QUEUES: names of the queues; there is one, and methods that build on this may have more.
    """

    QUEUES: tuple[str, ...] = ("queue",)
    queue: Tensor
    position: Tensor
    used: Tensor

    def __init__(
        self,
        encoder: ViewEncoder[Encodings],
        settings: Pretrain,
        *,
        queue_size: int,
        key_momentum: float,
        precision: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        split_batch_norms(encoder, settings.bn_splits)
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        set_groups_of_pass(
            encoder, settings.bn_splits, distributed.num_passes(settings.batch_size, settings.micro_batch)
        )
        self._settings, self._key_momentum, self._precision = settings, key_momentum, precision
        for name in self.QUEUES:
            keys = torch.randn(queue_size, settings.projection_dim, generator=generator)
            self.register_buffer(name, F.normalize(keys, dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        self.register_buffer("used", torch.zeros(2))  # sum of the shares of the queue, and their number
        self._keys: tuple[Tensor, ...] = ()

    @property
    def backbone(self) -> Trunk:
        """That of the query encoder."""
        return self.encoder.backbone

    def networks(self) -> tuple[nn.Module, ...]:
        """The networks to compile."""
        return self.encoder, self.key_encoder

    @property
    def expected(self) -> Expected:
        """The candidates are the keys that a query is compared with."""
        others = self._settings.batch_size - 1 if self._settings.batch_negatives else 0
        return Expected(num_candidates=1 + others + len(self.queue))

    @property
    def view_px(self) -> int:
        """Side of a view."""
        return self._settings.image_px

    def draw(self, views: Views, num_images: int, moment: Moment) -> Drawn:
        """The views of a step, and the order that shuffles the keys."""
        low, high = self._settings.crop_area
        drawn = views.draw(num_images, (low, high), self.view_px, 2)
        return Drawn((drawn, views.permutation(num_images)))

    def targets(self, image: Float[Tensor, "n 3 H W"], drawn: Drawn) -> list[Encodings]:
        """Keys of the whole batch, for passes of parts of it: second view, then the first if symmetric."""
        numbers, order = drawn.numbers
        return self._targets(render(image, numbers, self.view_px), order)

    def forward(
        self,
        image: Float[Tensor, "n 3 H W"],
        drawn: Drawn,
        rows: slice | None = None,
        targets: Sequence[Encodings] | None = None,
    ) -> Measured:
        """Loss and figures of this process's share of a batch, or of some of its images.

        Args:
            image: RGB in [0, 1].
            drawn: what `draw` has drawn, on the device.
            rows: images of this pass; None for all.
            targets: see `targets`; None to compute them.
        """
        numbers, order = drawn.numbers
        if rows is not None:
            image, numbers = image[rows], numbers[:, :, rows]
        views = render(image, numbers, self.view_px)
        if targets is None:
            targets = self._targets(views, order)
        found = [
            self._recognise(view, target, 0 if rows is None else rows.start)
            for view, target in zip(views, targets, strict=False)
        ]
        loss, accuracy, query = found[0]
        if self._settings.symmetric:
            swapped_loss, swapped_accuracy, _ = found[1]
            loss, accuracy = (loss + swapped_loss) / 2, (accuracy + swapped_accuracy) / 2
        key, own = targets[0].embedding, distributed.share(targets[0].embedding)
        self._keys = self._newest(targets[0])
        aligned = alignment(query.embedding.detach(), own if rows is None else own[rows])
        return Measured(loss, accuracy, aligned, uniformity(key), query.feature.detach())

    def _targets(self, views: Float[Tensor, "2 n 3 S S"], order: Tensor) -> list[Encodings]:
        keyed = (views[1], views[0]) if self._settings.symmetric else (views[1],)
        with autocast(views.device, self._precision):
            return [self.keys(view, order) for view in keyed]

    def _newest(self, key: Encodings) -> tuple[Tensor, ...]:
        """Of all keys of the batch, what each queue takes."""
        return (key.embedding,)

    def _recognise(
        self, view: Float[Tensor, "n 3 S S"], key: Encodings, start: int
    ) -> tuple[Tensor, Tensor, Encodings]:
        """Loss and accuracy of one view's queries against all keys; the queries.

        Args:
            view: of some images of this process's share.
            key: of the other view, of all images of the batch.
            start: place of the first image in the share.
        """
        with autocast(view.device, self._precision):
            query: Encodings = self.encoder(view)
        loss, accuracy = self._recognise_images(query, key, start)
        return loss, accuracy, query

    def _start(self, key: Encodings, start: int) -> int:
        """Place in the batch of an image of this process's share."""
        return start + distributed.rank() * (len(key.embedding) // distributed.world_size())

    def _recognise_images(self, query: Encodings, key: Encodings, start: int) -> tuple[Tensor, Tensor]:
        """InfoNCE of the global embeddings, and its accuracy; counts the use of the queue."""
        loss, accuracy, used = info_nce(
            query.embedding,
            key.embedding,
            self.queue,
            self._settings.temperature,
            batch_negatives=self._settings.batch_negatives,
            start=self._start(key, start),
        )
        self.used += torch.stack([distributed.mean(used), torch.ones_like(used)])
        return loss, accuracy

    @torch.no_grad()
    def keys(self, view: Float[Tensor, "n 3 H W"], order: Tensor) -> Encodings:
        """Encodings of the whole batch, without gradient; `order` permutes it to shuffle the groups."""
        shuffled: Encodings = self.key_encoder(distributed.share(distributed.gather(view)[order]))
        back = torch.argsort(order)
        return type(shuffled)(*(distributed.gather(part)[back] for part in shuffled))

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the key encoder and the queue."""
        self.update_key_encoder()
        self.enqueue(*self._keys)

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q (MoCo, Eq. 2). Buffers are not averaged."""
        follow(self.key_encoder.parameters(), self.encoder.parameters(), self._key_momentum)

    @torch.no_grad()
    def enqueue(self, *keys: Float[Tensor, "N D"]) -> None:
        """Replace the oldest keys of each queue by the newest."""
        size, count = len(self.queue), len(keys[0])
        places = (self.position + torch.arange(count, device=self.queue.device)) % size
        for name, newest in zip(self.QUEUES, keys, strict=True):
            self.get_buffer(name)[places] = newest
        self.position.copy_((self.position + count) % size)

    def take_usage(self) -> float:
        """Effective share of the queue that acted as negatives since the last call."""
        share, count = self.used.tolist()
        self.used.zero_()
        return share / count

    def heads(self) -> dict[str, Tensor]:
        """The projection head of the query encoder."""
        return self.encoder.heads()


@torch.no_grad()
def follow(slow: Iterable[Tensor], fast: Iterable[Tensor], momentum: float) -> None:
    """slow <- momentum slow + (1 - momentum) fast, for each pair of parameters, in place."""
    torch._foreach_lerp_(list(slow), list(fast), 1 - momentum)


def choose_queue_size(settings: Pretrain, num_images: int) -> int:
    """`queue_size`, or a value chosen by rule if it is 0.

    The rule (ours): the largest power of two up to half the number of images and up to MoCo's 65536, rounded
    down to whole batches. An image is then rarely its own negative.
    """
    if settings.queue_size:
        return settings.queue_size
    power = 2 ** (max(2, min(LARGEST_QUEUE, num_images // 2)).bit_length() - 1)
    return max(1, power // settings.batch_size) * settings.batch_size


def choose_key_momentum(settings: Pretrain, num_steps: int) -> float:
    """`key_momentum`, or a value chosen by rule if it is 0.

    The rule (ours): the averaging window 1 / (1 - m) is a tenth of the run, but at least 10 and at most 1000
    steps (MoCo's m = 0.999).
    """
    return settings.key_momentum or 1 - 1 / min(1000, max(10, num_steps / 10))
