"""SlotCon (Wen et al., 2022): cells are grouped by prototypes, and the groups (slots) are contrasted.

A student and a momentum teacher see two overlapping views. The student learns to group the cells of their
intersection as the teacher does, and to recognize each slot in the other view.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stages.backbone.batch_norm import split_batch_norms
from stages.backbone.trunk import Trunk
from stages.core import distributed
from stages.core.device import autocast
from stages.core.step import Drawn, Moment
from stages.pretraining.figures import Expected, Measured, count_chosen, take_usage, uniformity
from stages.pretraining.method import Method
from stages.pretraining.row_norm import LEAST_ROWS
from stages.pretraining.slot_networks import Projected, SlotEncoder, SlotPredictor
from stages.pretraining.slots import (
    Grouped,
    active,
    align,
    group,
    grouping_loss,
    rising_momentum,
    slot_sums,
)
from stages.pretraining.views import Look, Views, render_overlapping
from stages.settings.schema_pretrain import Pretrain

# Most slots of a batch of which all are compared, so that a step has one shape. Their cosines and hidden
# channels take some 0.5 GB with the channels of the preset `folder`, and 2 GB with SlotCon's.
MOST_SLOTS = 4096
NO_ALIGNMENT = 2.0  # that of chance


class Recognised(NamedTuple):
    """How well the slots of one view are recognized in the other; means over all processes' queries."""

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]
    alignment: Float[Tensor, ""]


class SlotCon(Method):
    """Student, teacher, and the predictor of slots.

    Batch norms use the whole batch of a view over all processes, whatever `bn_splits` says.

    Args:
        encoder: the student; the teacher starts as its copy.
        settings: `pretrain` of params.yaml.
        teacher_momentum: share of the old teacher that the first step keeps; rises to 1 by a half cosine.
        precision: precision of the forward passes; grouping and losses are float32.
    """

    VARIES = (
        f"pretrain.batch_size times slotcon.num_prototypes is more than {MOST_SLOTS}, so the shape of a step "
        "varies with the number of active slots"
    )
    centre: Tensor
    assigned: Tensor

    def __init__(
        self, encoder: SlotEncoder, settings: Pretrain, *, teacher_momentum: float, precision: str
    ) -> None:
        super().__init__()
        self._settings, self._own, self._precision = settings, settings.slotcon, precision
        self._first_momentum = teacher_momentum
        dim, hidden = settings.projection_dim, self._own.hidden_dim
        self.encoder = encoder
        self.predictor = SlotPredictor(dim, hidden)
        split_batch_norms(self, 1)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(self._own.num_prototypes))
        self.register_buffer("assigned", torch.zeros(self._own.num_prototypes))
        self._mean_score: Tensor | None = None  # of the step that is made, as is the weight of the student
        self._weight: Tensor | None = None

    @property
    def backbone(self) -> Trunk:
        """That of the teacher, which its authors evaluate."""
        return self.teacher.backbone

    def networks(self) -> tuple[nn.Module, ...]:
        """The networks to compile; the predictor may see another number of slots at each step."""
        return self.encoder, self.teacher

    @property
    def expected(self) -> Expected:
        """The number of slots differs from step to step, so there is no fixed chance level."""
        return Expected(num_candidates=None, num_prototypes=self._own.num_prototypes)

    def has_fixed_shape(self, num_images: int) -> bool:
        """Whether a step has the same shape however many slots are active, so that it can be a CUDA graph.

        All slots are compared then: with M of them, M^2 cosines. A CPU compares those that are active alone,
        because the others would take it longer.

        Args:
            num_images: of a batch.
        """
        is_alone = distributed.world_size() == 1 and self.centre.device.type != "cpu"
        return is_alone and num_images * self._own.num_prototypes <= MOST_SLOTS

    def draw(self, views: Views, num_images: int, moment: Moment) -> Drawn:
        """The views of a step, and the weight of the student in the teacher's means."""
        own, (low, high) = self._own, self._settings.crop_area
        momentum = rising_momentum(self._first_momentum, moment.epochs / self._settings.epochs)
        looks = list(map(Look, own.blur_probability, own.solarize_probability))
        side = self._settings.dense.image_px
        numbers = views.draw_overlapping(num_images, (low, high), side, own.overlap, looks)
        return Drawn((numbers, torch.tensor(1 - momentum)))

    def forward(self, image: Float[Tensor, "n 3 H W"], drawn: Drawn) -> Measured:
        """Loss, the sum over both directions, and figures of this process's share of a batch.

        Args:
            image: RGB in [0, 1].
            drawn: what `draw` has drawn, on the device.
        """
        own = self._own
        numbers, self._weight = drawn.numbers
        pair, common = render_overlapping(image, numbers, self._settings.dense.image_px)
        projected = [self._project(self.encoder, view) for view in pair]
        student = [self._group(self.encoder, one) for one in projected]
        with torch.no_grad():
            targets = [self._project(self.teacher, view) for view in pair]
            teacher = [self._group(self.teacher, one) for one in targets]
            self._remember(torch.cat([one.score for one in teacher]))
        aligned = [
            [align(one.score, box) for one, box in zip(side, common, strict=True)]
            for side in (student, teacher)
        ]
        ways = ((0, 1), (1, 0))
        grouping = torch.stack([self._grouping(aligned[0][i], aligned[1][j]) for i, j in ways]).sum()
        known = [self._recognise(student[i], teacher[j]) for i, j in ways]
        loss, accuracy, alignment = (torch.stack(part) for part in zip(*known, strict=True))
        with torch.no_grad():
            pooled = F.normalize(distributed.gather(targets[1].cell.mean((2, 3))), dim=1)
        return Measured(
            own.grouping_weight * grouping + (1 - own.grouping_weight) * loss.sum(),
            accuracy.mean(),
            alignment.mean(),
            uniformity(pooled),
            projected[0].feature.detach(),
        )

    def _project(self, encoder: SlotEncoder, view: Float[Tensor, "n 3 S S"]) -> Projected:
        with autocast(view.device, self._precision):
            return encoder(view)

    def _group(self, encoder: SlotEncoder, projected: Projected) -> Grouped:
        return group(projected.cell, encoder.prototypes, self._own.teacher_temperature)

    def _grouping(self, student: Float[Tensor, "n K h w"], teacher: Float[Tensor, "n K h w"]) -> Tensor:
        own = self._own
        return grouping_loss(student, teacher, self.centre, own.student_temperature, own.teacher_temperature)

    def _recognise(self, student: Grouped, teacher: Grouped) -> Recognised:
        """The slot loss of one view's slots against those of the other, over all processes.

        Queries are the slots that are active in both views of their image, keys all active ones of the whole
        batch. With fewer than two queries there is no loss: batch norm needs two.
        """
        is_known = active(teacher.score)
        is_asked = (active(student.score) & is_known).flatten()
        if self.has_fixed_shape(len(student.slot)):
            return self._recognise_among_all(student, teacher, is_asked, is_known.flatten())
        count = distributed.total(is_asked.sum())
        if count < LEAST_ROWS:
            # As where all slots are compared: with gradients of zero, and none that are missing.
            parts = [student.slot, *self.predictor.parameters()]
            zero = 0 * torch.stack([one.sum() for one in parts]).sum()
            return Recognised(zero, zero.detach(), zero.detach() + NO_ALIGNMENT)
        is_key = distributed.gather(is_known.flatten().float()) > 0
        keys = distributed.gather(F.normalize(teacher.slot, dim=2).flatten(0, 1))[is_key]
        start = distributed.rank() * len(is_asked)
        target = (is_key.long().cumsum(0) - 1)[start : start + len(is_asked)][is_asked]
        with autocast(keys.device, self._precision):
            predicted = self.predictor(student.slot.flatten(0, 1)[is_asked])
        query = F.normalize(predicted.float(), dim=1)
        loss, accuracy, alignment = slot_sums(query, keys, target, self._settings.temperature)
        share = distributed.world_size() / count  # of sums: the mean over processes is the global mean
        return Recognised(loss * share, accuracy * share, alignment * share)

    def _recognise_among_all(
        self, student: Grouped, teacher: Grouped, is_asked: Bool[Tensor, " M"], is_key: Bool[Tensor, " M"]
    ) -> Recognised:
        """The same, in the shape of all M slots: those that are no queries or no keys have no part in it."""
        keys = F.normalize(teacher.slot, dim=2).flatten(0, 1)
        with autocast(keys.device, self._precision):
            predicted = self.predictor(student.slot.flatten(0, 1), is_asked)
        query, target = F.normalize(predicted.float(), dim=1), torch.arange(len(keys), device=keys.device)
        sums = slot_sums(query, keys, target, self._settings.temperature, is_asked=is_asked, is_key=is_key)
        count = is_asked.sum()
        is_enough = count >= LEAST_ROWS
        loss, accuracy, alignment = (one * is_enough / count.clamp_min(1) for one in sums)
        return Recognised(loss, accuracy, torch.where(is_enough, alignment, NO_ALIGNMENT))

    @torch.no_grad()
    def _remember(self, score: Float[Tensor, "m K h w"]) -> None:
        """Note the teacher's mean score and the prototype of each of its cells."""
        self._mean_score = distributed.mean(score.mean((0, 2, 3)))
        self.assigned += distributed.total(count_chosen(score.argmax(1), score.shape[1]))

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the teacher and the centre of its scores."""
        assert self._mean_score is not None
        assert self._weight is not None
        slow: list[Tensor] = list(self.teacher.parameters())
        fast: list[Tensor] = list(self.encoder.parameters())
        moves = torch._foreach_sub(fast, slow)
        torch._foreach_mul_(moves, self._weight)  # a number of the device, which `follow` would wait for
        torch._foreach_add_(slow, moves)
        self.centre.lerp_(self._mean_score, 1 - self._own.centre_momentum)

    def take_usage(self) -> float:
        """Effective share of prototypes that were nearest to some cell of the teacher since the last call."""
        return take_usage(self.assigned)

    def heads(self) -> dict[str, Tensor]:
        """None: the prototypes group the cells of an image, and later stages label whole views."""
        return {}
