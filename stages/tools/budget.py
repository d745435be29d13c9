"""What `make preset MINUTES=...` changes: sizes and epochs whose run fits into so many minutes here (ours).

At least half of the time belongs to pretraining, because every later stage rests on its features: if the
other stages need more than half at the preset's sizes, images become smaller, down to half the side, and
after that the network and the training half as large. What is left then sets the epochs of pretraining.
Where a better start is known, which takes longer, it comes first: it is taken if all of it fits. Times are
the upper bounds of `stages/tools/estimate.py`.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stages.dataset.source import DataSet
from stages.runtime.script import rough_duration
from stages.settings.errors import UserError
from stages.settings.params import validated
from stages.settings.schema_pretrain import DENSE_METHODS, UNTRAINED
from stages.settings.section import Backbone
from stages.tools.estimate import MARGIN, Span, estimate
from stages.tools.fitting import Fit, Key, at

# Sides of images, and channels of the network and epochs of training, as shares of the preset's.
LEVELS = ((1.0, 1.0), (0.75, 1.0), (0.5, 1.0), (0.5, 0.5))
SIDE: Key = ("size_px",)
SIZES: tuple[Key, ...] = (
    SIDE, ("prepare", "train_px"), ("embed", "image_px"), ("train", "image_loss", "view_px"),
)  # fmt: skip
BANDWIDTH: Key = ("refine", "appearance_px")
EPOCHS: Key = ("pretrain", "epochs")
METHOD: Key = ("pretrain", "method")
FIRST_EPOCHS: Key = ("pretrain", "dense", "mocov2_epochs")  # in proportion to the others
WIDTH: Key = ("backbone", "width")
AMOUNTS: tuple[Key, ...] = (WIDTH, ("train", "epochs"))
STEP: Key = ("train", "context", "stride")  # all sizes are multiples of it, as two of them must be
LEAST, MOST = 5, 400  # epochs of pretraining; more than 400 were never tried, ...
MOST_DENSE = 100  # ... and of dense methods more than 100
SPARE = 1.1  # of the minutes that are proposed, because the next measurement of this machine may be slower
SHARE = 0.5  # smallest share of the time that pretraining gets


class _Plan(NamedTuple):
    """The run of some settings.

    Attributes:
        changes: of sizes and amounts.
        found: seconds of its stages.
        others: seconds of all but pretraining, at most.
        epoch: seconds of an epoch of pretraining.
    """

    changes: tuple[Fit, ...]
    found: dict[str, Span]
    others: float
    epoch: Span

    def needs(self, epochs: int) -> float:
        """Seconds of the run with so many epochs of pretraining, at most."""
        return self.others + epochs * _upper(self.epoch)

    def leaves_share(self, seconds: float) -> bool:
        """Whether pretraining gets the share of the time that belongs to it."""
        return self.others <= (1 - SHARE) * seconds


def fit_into(
    minutes: float, params: Mapping[str, Any], data: DataSet, better: tuple[Fit, ...] = ()
) -> tuple[tuple[Fit, ...], dict[str, Span]]:
    """Choose sizes and epochs, and estimate their run.

    Args:
        minutes: that `dvc repro` may take.
        params: the complete settings of a preset, fitted to the data; not changed.
        data: the images.
        better: pretraining that is better and takes longer; it is taken if all of its epochs fit, with images
            of the preset's size.

    Returns:
        What changes, and the seconds of the stages with these changes, as of `estimate`.

    Raises:
        UserError: the smallest settings take longer.
    """
    seconds = 60 * minutes
    if better:
        whole = _laid(params, better)
        plan = _planned(whole, data, *LEVELS[0])
        if plan.needs(at(whole, EPOCHS)) <= seconds and plan.leaves_share(seconds):
            changes, found = _with_epochs(whole, plan, seconds)
            chosen = {fit.key: fit for fit in (*better, *changes)}
            return tuple(chosen.values()), found
    for level in LEVELS:
        plan = _planned(params, data, *level)
        is_shared = not _trains(params) or plan.leaves_share(seconds) or level == LEVELS[-1]
        if plan.needs(LEAST) <= seconds and is_shared:
            return _with_epochs(params, plan, seconds)
    raise UserError(
        f"{minutes:g} minutes are too few for {len(data.train):,} training images: even with half the "
        f"preset's side, channels (unless pretrain.init has them) and epochs, and {LEAST} epochs of any "
        f"pretraining, this machine may take {rough_duration(plan.needs(LEAST))}; set "
        f"MINUTES={math.ceil(SPARE * plan.needs(LEAST) / 60)} (--minutes), or take fewer images"
    )


def _planned(params: Mapping[str, Any], data: DataSet, side: float, amount: float) -> _Plan:
    changes = (*_scaled(params, side), *_reduced(params, amount))
    found = estimate(validated(_laid(params, changes)), data)
    others = sum(_upper(span) for stage, span in found.items() if stage != "pretrain")
    epoch = found["pretrain"].times(1 / at(params, EPOCHS)) if _trains(params) else Span(0, 0)
    return _Plan(changes, found, others, epoch)


def _with_epochs(
    params: Mapping[str, Any], plan: _Plan, seconds: float
) -> tuple[tuple[Fit, ...], dict[str, Span]]:
    """The changes of a plan and the epochs of pretraining that fit; the seconds of the stages."""
    if not _trains(params):
        return plan.changes, plan.found
    most = MOST_DENSE if at(params, METHOD) in DENSE_METHODS else MOST
    epochs = min(most, math.floor((seconds - plan.others) / _upper(plan.epoch)))
    why = "what the time allows" if epochs < most else "the most"
    changes = (*plan.changes, Fit(EPOCHS, epochs, why))
    if first := at(params, FIRST_EPOCHS):
        changes = (*changes, Fit(FIRST_EPOCHS, math.floor(first * epochs / at(params, EPOCHS)), why))
    return changes, plan.found | {"pretrain": plan.epoch.times(epochs)}


def _trains(params: Mapping[str, Any]) -> bool:
    """Whether there is any pretraining, whose epochs can be chosen."""
    return at(params, METHOD) not in UNTRAINED and at(params, EPOCHS) > 0


def _reduced(params: Mapping[str, Any], amount: float) -> Iterator[Fit]:
    if amount == 1:
        return
    for key in AMOUNTS:
        if key == WIDTH and at(params, ("pretrain", "init")):
            continue  # the width is that of the network in the file
        yield Fit(key, round(amount * at(params, key)), f"{amount:.0%}, as the time is short")


def _laid(params: Mapping[str, Any], changes: tuple[Fit, ...]) -> dict[str, Any]:
    """The settings with these changes."""
    changed: Any = copy.deepcopy(params)
    for change in changes:
        at(changed, change.key[:-1])[change.key[-1]] = change.value
    return dict(changed)


def _upper(span: Span) -> float:
    return MARGIN * span.high


def _scaled(params: Mapping[str, Any], scale: float) -> Iterator[Fit]:
    if scale == 1:
        return
    reason = "so that half of the time is left for pretraining" if _trains(params) else "as the time is short"
    why = f"{scale:.0%} of the side, {reason}"
    for key in SIZES:
        step = _step(params, key)
        yield Fit(key, step * max(1, round(scale * at(params, key) / step)), why)
    yield Fit(BANDWIDTH, round(scale * at(params, BANDWIDTH), 1), "in proportion to size_px")


def _step(params: Mapping[str, Any], key: Key) -> int:
    """What a size must be a multiple of."""
    step, backbone = at(params, STEP), Backbone.model_validate(params["backbone"])
    return math.lcm(step, 8 * backbone.stem_stride) if key == SIDE and not backbone.is_vit else step
