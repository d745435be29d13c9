"""The equations of SlotCon (Wen et al., 2022): grouping of cells, alignment of views, and both losses."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from stages.imaging.resample import Boxes, resample

SHARE_FLOOR = 1e-6  # added to each assignment, so that no slot is an empty sum


class Grouped(NamedTuple):
    """The cells of a view, grouped by the prototypes."""

    slot: Float[Tensor, "N K D"]  # mean cell of each group
    score: Float[Tensor, "N K h w"]  # cosine of each cell and each prototype


def rising_momentum(first: float, progress: float) -> float:
    """Momentum of the teacher: from `first` to 1 by a half cosine over the run.

    Args:
        first: momentum of the first step.
        progress: share of the run that is done.
    """
    return 1 - (1 - first) * (math.cos(math.pi * progress) + 1) / 2


def group(cell: Float[Tensor, "N D h w"], prototypes: Float[Tensor, "K D"], temperature: float) -> Grouped:
    """Assign each cell to the prototypes, softly, and average the cells of each (SlotCon).

    Args:
        cell: of any length; the means are of the cells as they are.
        prototypes: of any length; the scores are cosines.
        temperature: of the softmax over prototypes.
    """
    score = torch.einsum("kd,ndhw->nkhw", F.normalize(prototypes, dim=1), F.normalize(cell, dim=1))
    share = (score / temperature).softmax(1) + SHARE_FLOOR
    share = share / share.sum((2, 3), keepdim=True)
    return Grouped(torch.einsum("nkhw,ndhw->nkd", share, cell), score)


def align(score: Float[Tensor, "N K h w"], common: Boxes) -> Float[Tensor, "N K h w"]:
    """Cut the intersection of the views out of a score map, at the map's own size, and undo the flip.

    The values of RoIAlign (SlotCon), as matrix products, whose gradient is the same in each run on a GPU.
    """
    return resample(score, common, (score.shape[2], score.shape[3]))


def grouping_loss(
    student: Float[Tensor, "n K h w"],
    teacher: Float[Tensor, "n K h w"],
    centre: Float[Tensor, " K"],
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of the teacher's assignment with the student's, mean over cells (SlotCon).

    Args:
        student: scores of aligned cells in one view.
        teacher: scores of the same cells in the other view, without gradient.
        centre: moving average of the teacher's scores; taking it away keeps one prototype from winning all.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's softmax; lower, so that its assignments are harder.
    """
    target = ((teacher - centre[:, None, None]) / teacher_temperature).softmax(1)
    return -(target * (student / student_temperature).log_softmax(1)).sum(1).mean()


@torch.no_grad()
def active(score: Float[Tensor, "N K h w"]) -> Bool[Tensor, "N K"]:
    """Whether a prototype has the highest score of any cell of the image."""
    prototypes = torch.arange(score.shape[1], device=score.device)
    return (score.argmax(1).flatten(1)[:, None] == prototypes[:, None]).any(2)


def slot_sums(
    query: Float[Tensor, "M D"],
    keys: Float[Tensor, "L D"],
    target: Tensor,
    temperature: float,
    *,
    is_asked: Bool[Tensor, " M"] | None = None,
    is_key: Bool[Tensor, " L"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE of slots (SlotCon), right answers, squared distances; each the sum over the queries.

    Args:
        query: predicted unit slots.
        keys: unit slots of the teacher.
        target: index of each query's key, [M].
        temperature: of the softmax; the loss is scaled by twice the temperature.
        is_asked: which queries count; by default all.
        is_key: which keys there are; by default all. The keys of queries that count must be among them.
    """
    cosines = query @ keys.T
    if is_key is not None:
        cosines = cosines.masked_fill(~is_key, -torch.inf)
    loss = 2 * temperature * F.cross_entropy(cosines / temperature, target, reduction="none")
    with torch.no_grad():
        right = (cosines.argmax(1) == target).to(cosines.dtype)
        distance = (query - keys[target]).square().sum(1)
    parts = [loss, right, distance]
    if is_asked is not None:  # the others may be infinite
        parts = [torch.where(is_asked, one, 0) for one in parts]
    loss, right, distance = (one.sum() for one in parts)
    return loss, right, distance
