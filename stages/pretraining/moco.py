"""MoCo v2 (He et al., 2020; Chen et al., 2020): a query encoder learns to identify the key of its image.

The paper uses it as the instance-level self-supervised method (4.1, 5.1).
"""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stages.backbone.batch_norm import split_batch_norms
from stages.core import distributed
from stages.core.device import autocast
from stages.core.step import Drawn, Moment
from stages.pretraining.encoder import DenseEncoded, Encoded, Encoder
from stages.pretraining.figures import Measured, alignment, perplexity, uniformity
from stages.pretraining.views import Views, render
from stages.settings.schema_pretrain import Pretrain

LARGEST_QUEUE = 65536
Encodings = Encoded | DenseEncoded


class MoCo(nn.Module):
    """The two encoders and the queue of past keys.

    Shared batch-norm statistics would let a query identify its key. The batch is therefore split into groups
    with separate statistics, and the keys are shuffled between groups. MoCo does this across GPUs; here it
    works within one device or across processes.

    Args:
        encoder: the query encoder; the key encoder starts as its copy.
        settings: `pretrain` of params.yaml.
        queue_size: queue length Q.
        key_momentum: share of the old key encoder that each step keeps.
        precision: precision of the forward passes.
        generator: draws the initial queue.
    """

    queue: Tensor
    position: Tensor
    used: Tensor

    def __init__(
        self,
        encoder: Encoder,
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
        self._settings, self._key_momentum, self._precision = settings, key_momentum, precision
        queue = F.normalize(torch.randn(queue_size, settings.projection_dim, generator=generator), dim=1)
        self.register_buffer("queue", queue)
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        self.register_buffer("used", torch.zeros(2))  # sum of the shares of the queue, and their number
        self._keys: tuple[Tensor, ...] = ()

    def networks(self) -> tuple[nn.Module, ...]:
        """The networks to compile."""
        return self.encoder, self.key_encoder

    @property
    def num_prototypes(self) -> None:
        """There are no prototypes."""

    @property
    def num_candidates(self) -> int:
        """Number of candidate keys per query; the chance-level loss is its logarithm."""
        others = self._settings.batch_size - 1 if self._settings.batch_negatives else 0
        return 1 + others + len(self.queue)

    @property
    def view_px(self) -> int:
        """Side of a view."""
        return self._settings.image_px

    def draw(self, views: Views, num_images: int, moment: Moment) -> Drawn:
        """The views of a step, and the order that shuffles the keys.

        Args:
            views: draws them.
            num_images: of this process's share.
            moment: of the step.
        """
        low, high = self._settings.crop_area
        drawn = views.draw(num_images, (low, high), self.view_px, 2)
        return Drawn((drawn, views.permutation(num_images)))

    def forward(self, image: Float[Tensor, "n 3 H W"], drawn: Drawn) -> Measured:
        """Loss and figures of this process's share of a batch.

        Args:
            image: RGB in [0, 1].
            drawn: what `draw` has drawn, on the device.
        """
        numbers, order = drawn.numbers
        first, second = render(image, numbers, self.view_px)
        loss, accuracy, query, keys = self._recognise(first, second, order)
        if self._settings.symmetric:
            swapped_loss, swapped_accuracy, _, _ = self._recognise(second, first, order)
            loss, accuracy = (loss + swapped_loss) / 2, (accuracy + swapped_accuracy) / 2
        self._keys = keys
        aligned = alignment(query.embedding.detach(), distributed.share(keys[0]))
        return Measured(loss, accuracy, aligned, uniformity(keys[0]), query.feature.detach())

    def _recognise(
        self, queried: Float[Tensor, "n 3 S S"], keyed: Float[Tensor, "n 3 S S"], order: Tensor
    ) -> tuple[Tensor, Tensor, Encodings, tuple[Tensor, ...]]:
        """Loss and accuracy of one view's queries against the other's keys; the queries; all keys."""
        with autocast(queried.device, self._precision):
            query, key = self.encoder(queried), self.keys(keyed, order)
        loss, accuracy = self._recognise_images(query, key)
        return loss, accuracy, query, (key.embedding,)

    def _recognise_images(self, query: Encodings, key: Encodings) -> tuple[Tensor, Tensor]:
        """InfoNCE of the global embeddings, and its accuracy; counts the use of the queue."""
        loss, accuracy, used = info_nce(
            query.embedding,
            key.embedding,
            self.queue,
            self._settings.temperature,
            batch_negatives=self._settings.batch_negatives,
            start=distributed.rank() * len(query.embedding),
        )
        self.used += torch.stack([distributed.mean(used), torch.ones_like(used)])
        return loss, accuracy

    @torch.no_grad()
    def keys(self, view: Float[Tensor, "n 3 H W"], order: Tensor) -> Encodings:
        """Encodings of the whole batch, without gradient; `order` permutes it to shuffle the groups."""
        shuffled = self.key_encoder(distributed.share(distributed.gather(view)[order]))
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

    def _queues(self) -> tuple[Float[Tensor, "Q D"], ...]:
        return (self.queue,)

    @torch.no_grad()
    def enqueue(self, *keys: Float[Tensor, "N D"]) -> None:
        """Replace the oldest keys of each queue by the newest."""
        size, count = len(self.queue), len(keys[0])
        places = (self.position + torch.arange(count, device=self.queue.device)) % size
        for queue, newest in zip(self._queues(), keys, strict=True):
            queue[places] = newest
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


def info_nce(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "N D"],
    queue: Float[Tensor, "Q D"],
    temperature: float,
    *,
    batch_negatives: bool,
    start: int = 0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE loss (MoCo, Eq. 1), accuracy of the queries, and effective share of the queue.

    The last is the mean perplexity of the softmax over the queue, divided by its length; 1 means uniform.

    Args:
        query: unit embeddings of one view of some images.
        key: unit embeddings of the other view of all images of the batch; row `start` + i belongs to query i.
        queue: unit embeddings of other images.
        temperature: softmax temperature.
        batch_negatives: whether the other keys of the batch are also negatives, as in MoCo v3. With only
            the queue, old keys are easy to recognize while the encoder changes fast.
        start: row of the first query's key.
    """
    target = start + torch.arange(len(query), device=query.device)
    against_batch = query @ key.T
    if not batch_negatives:
        against_batch = against_batch.gather(1, target[:, None])
        target = torch.zeros_like(target)
    against_queue = query @ queue.T
    logits = torch.cat([against_batch, against_queue], dim=1) / temperature
    with torch.no_grad():
        accuracy = (logits.argmax(1) == target).float().mean()
        used = perplexity((against_queue / temperature).softmax(1)).mean() / len(queue)
    return F.cross_entropy(logits, target), accuracy, used
