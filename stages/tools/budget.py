"""What `make preset MINUTES=...` changes: sizes and epochs whose run fits into so many minutes here (ours).

At least half of the time belongs to pretraining, because every later stage rests on its features: if the
other stages need more than half at the preset's sizes, images become smaller, down to half the side, and
after that the network and the training half as large. What is left then sets the epochs of pretraining. If
fifty epochs of MoCo v2 and fifty of SlotCon after them fit, they replace MoCo v2 alone (docs/results.md, "The
start"). Times are the upper bounds of `stages/tools/estimate.py`.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stages.backbone.resnet import BLOCKS
from stages.dataset.source import DataSet
from stages.runtime.script import rough_duration
from stages.settings.errors import UserError
from stages.settings.schema import Params
from stages.tools.estimate import MARGIN, Span, estimate
from stages.tools.fitting import Fit, Key, at

# Sides of images, and channels of the network and epochs of training, as shares of the preset's.
LEVELS = ((1.0, 1.0), (0.75, 1.0), (0.5, 1.0), (0.5, 0.5))
SIZES: tuple[Key, ...] = (
    ("size_px",), ("prepare", "train_px"), ("embed", "image_px"), ("train", "image_loss", "view_px"),
)  # fmt: skip
BANDWIDTH: Key = ("refine", "appearance_px")
EPOCHS: Key = ("pretrain", "epochs")
FIRST_EPOCHS: Key = ("pretrain", "dense", "mocov2_epochs")  # in proportion to the others
AMOUNTS: tuple[Key, ...] = (("backbone", "width"), ("train", "epochs"))
STEP: Key = ("train", "context", "stride")  # all sizes are multiples of it, as two of them must be
LEAST, MOST = 5, 400  # epochs of pretraining; more than 400 were never tried
SHARE = 0.5  # smallest share of the time that pretraining gets
# SlotCon after MoCo v2, with as many epochs of each; fewer were never tried. In images of less than this
# share of the preset's side its views would have too few cells.
DENSE_LEAST, DENSE_MOST = 50, 100
DENSE_SIDE = 0.75
DENSE = tuple(
    Fit(key, value, f"{DENSE_LEAST} epochs each of MoCo v2 and then SlotCon fit")
    for key, value in (
        (("pretrain", "method"), "slotcon"),
        (FIRST_EPOCHS, DENSE_LEAST),
        (EPOCHS, DENSE_LEAST),
    )
)


class Plan(NamedTuple):
    """Settings, and how long they take.

    Attributes:
        changes: of the preset.
        settings: with these changes.
        found: seconds of the stages, as of `estimate`.
    """

    changes: tuple[Fit, ...]
    settings: Params
    found: dict[str, Span]

    @property
    def pretrains(self) -> bool:
        """Whether pretraining is part of the run."""
        return "pretrain" in self.found

    @property
    def others(self) -> float:
        """Seconds of all other stages, at most."""
        return sum(_upper(span) for stage, span in self.found.items() if stage != "pretrain")

    @property
    def epoch(self) -> Span:
        """Seconds of an epoch of pretraining, with its share of the epochs of MoCo v2 before it."""
        return self.found["pretrain"].times(1 / self.settings.pretrain.epochs)

    def needed(self, epochs: int) -> float:
        """Seconds of the run with so many epochs of pretraining, at most."""
        return self.others + (epochs * _upper(self.epoch) if self.pretrains else 0)

    def most_epochs(self, seconds: float, limit: int) -> int:
        """How many epochs of pretraining fit, up to a limit."""
        return min(limit, math.floor((seconds - self.others) / _upper(self.epoch)))

    def with_epochs(self, epochs: int, why: str) -> "Plan":
        """The same with another number of epochs, and as many times more or fewer of MoCo v2 before them."""
        pretrain = self.settings.pretrain
        first = math.floor(pretrain.dense.mocov2_epochs * epochs / pretrain.epochs)
        kept = (change for change in self.changes if change.key not in (EPOCHS, FIRST_EPOCHS))
        changes = (*kept, *([Fit(FIRST_EPOCHS, first, why)] if first else []), Fit(EPOCHS, epochs, why))
        return self._replace(changes=changes, found=self.found | {"pretrain": self.epoch.times(epochs)})


def fit_into(
    minutes: float, params: Mapping[str, Any], data: DataSet
) -> tuple[tuple[Fit, ...], dict[str, Span]]:
    """Choose sizes, epochs and the method of pretraining, and estimate their run.

    Args:
        minutes: that `dvc repro` may take.
        params: the complete settings of a preset, fitted to the data; not changed.
        data: the images.

    Returns:
        What changes, and the seconds of the stages with these changes, as of `estimate`.

    Raises:
        UserError: the smallest settings take longer.
    """
    seconds = 60 * minutes
    for side, amount in LEVELS:
        plan = _plan(params, (*_scaled(params, side), *_reduced(params, amount)), data)
        is_shared = not plan.pretrains or plan.others <= (1 - SHARE) * seconds
        if plan.needed(LEAST) <= seconds and (is_shared or (side, amount) == LEVELS[-1]):
            break
    else:
        raise UserError(
            f"{minutes:g} minutes are too few for {len(data.train):,} training images: even with half the "
            f"side, channels and epochs of the preset, and {LEAST} epochs of pretraining, this machine may "
            f"take {rough_duration(plan.needed(LEAST))}; allow that, or take fewer images"
        )
    if plan.pretrains:
        plan = _pretrained(plan, seconds, params, data, is_large=side >= DENSE_SIDE)
    return plan.changes, plan.found


def _pretrained(
    plan: Plan, seconds: float, params: Mapping[str, Any], data: DataSet, *, is_large: bool
) -> Plan:
    """Choose the epochs of pretraining, and the method if the preset's is the usual one."""
    if is_large and _is_usual(plan.settings):
        dense = _plan(params, (*plan.changes, *DENSE), data)
        epochs = dense.most_epochs(seconds, DENSE_MOST)
        if epochs >= DENSE_LEAST:
            return dense.with_epochs(epochs, DENSE[0].why)
    epochs = plan.most_epochs(seconds, MOST)
    return plan.with_epochs(epochs, "what the time allows" if epochs < MOST else "the most")


def _is_usual(settings: Params) -> bool:
    """Whether nothing but MoCo v2 from scratch is asked for, and SlotCon is possible."""
    own = settings.pretrain
    is_free = settings.backbone.arch in BLOCKS and settings.label.centres == "auto" and not own.micro_batch
    return is_free and own.method == "mocov2" and not own.init


def _plan(params: Mapping[str, Any], changes: tuple[Fit, ...], data: DataSet) -> Plan:
    changed: Any = copy.deepcopy(params)
    for change in changes:
        at(changed, change.key[:-1])[change.key[-1]] = change.value
    settings = Params.model_validate(changed)
    return Plan(changes, settings, estimate(settings, data))


def _reduced(params: Mapping[str, Any], amount: float) -> Iterator[Fit]:
    if amount == 1:
        return
    for key in AMOUNTS:
        yield Fit(key, round(amount * at(params, key)), f"{amount:.0%}, as the time is short")


def _upper(span: Span) -> float:
    return MARGIN * span.high


def _scaled(params: Mapping[str, Any], scale: float) -> Iterator[Fit]:
    if scale == 1:
        return
    why = f"{scale:.0%} of the side, so that half of the time is left for pretraining"
    for key in SIZES:
        step = at(params, STEP)
        yield Fit(key, step * round(scale * at(params, key) / step), why)
    yield Fit(BANDWIDTH, round(scale * at(params, BANDWIDTH), 1), "in proportion to size_px")
