"""Training curves: one small panel for each column of a training history, drawn as SVG by the page."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.settings.errors import UserError

X_COLUMN = "epoch"
WIDTH, HEIGHT = 240, 90  # of a panel, in its own units
NO_AIM = "neither high nor low is better"
# What each column of a history means, and which direction is good, for those who have not read the paper.
MEANINGS = {
    "pretrain": {
        "loss": "what pretraining makes small; can be compared only within one method and its settings",
        "instance_accuracy": "share of views (SlotCon: slots) most like their own counterpart in the other "
        "view of the image, among all they are compared with; higher is better",
        "alignment": "mean squared distance between the two views of an image (SlotCon: of a slot): 0 is "
        "identical, 2 is chance; lower is better",
        "uniformity": "how evenly images are spread: 0 if all are in one place, about -4 if evenly; lower is "
        "better",
        "effective_rank": "number of directions in which features vary, in effect; near 1 is a collapse",
        "usage": "MoCo v2, DenseCL: share of the queue that is hard to tell apart from an image, which falls "
        "as images become distinct; SwAV, SlotCon: share of the prototypes in use, where near 0 is bad",
        "lr": "learning rate at the end of the epoch, by pretrain.lr and its schedule",
    },
    "train": {
        "loss": "what training makes small: within, cross, and image loss times guidance weight; clusters "
        "are new in each epoch, so it need not fall",
        "within": "how far pixels are from the clusters of their own view; lower is better",
        "cross": "how far pixels are from the clusters of the other view; lower is better",
        "image_loss": "how far the classifier of views is from the pseudo-labels; lower is better",
        "image_accuracy": "share of the guiding views whose pseudo-label the classifier finds; higher is "
        "better",
        "guidance_weight": "weight of the image loss in the loss; 0 is no guidance",
        "guided_share": "share of the batches that have views to guide them: 1 is all, 0 is no guidance",
        "held_out_accuracy": "image accuracy on views that guide nothing; far below it, the classifier "
        "learns its views by heart",
        "effective_clusters": "number of clusters in use while training, in effect: all if they are equally "
        "large; near 1 is a collapse",
        "largest_cluster": "share of the pixels in the largest cluster; near 1 is a collapse",
        "image_share": "how much of a pixel's cluster its image alone tells: 0 is nothing; near 1, clusters "
        "are whole images, which is bad",
        "moved_share": "share of the pixels that have another cluster than an epoch before, apart from its "
        "number; falls as training settles",
        "view_agreement": "share of the pixels whose clusters in both views correspond; higher is better",
        "appearance_weight": "context: weight of pixels that are near and of like color; " + NO_AIM,
        "proximity_weight": "context: weight of pixels that are near, of any color; " + NO_AIM,
        "position_bandwidth": "context: how near pixels of like color must be, in shorter image sides; "
        + NO_AIM,
        "color_bandwidth": "context: how like their colors must be, each channel from 0 to 1; " + NO_AIM,
        "proximity_bandwidth": "context: how near pixels of any color must be, in shorter image sides; "
        + NO_AIM,
    },
}


@dataclass(frozen=True)
class Curve:
    """One panel.

    Attributes:
        name: what is drawn.
        meaning: what that is, and which direction is good; empty if it is not known.
        points: the line in SVG coordinates, "x,y x,y"; a lone epoch is a short level line.
        low, high, last: of the values, formatted.
        first_epoch, last_epoch: range of the axis.
    """

    name: str
    meaning: str
    points: str
    low: str
    high: str
    last: str
    first_epoch: str
    last_epoch: str


def curves(history: pd.DataFrame, meanings: Mapping[str, str]) -> list[Curve]:
    """Make a panel of every numeric column against the epoch; none if no epoch was trained.

    Args:
        history: a row for each epoch.
        meanings: of its columns, from `MEANINGS`.

    Raises:
        UserError: the history has no column `epoch`.
    """
    if X_COLUMN not in history.columns:
        raise UserError(f"history: has columns {', '.join(history.columns)}, but no column {X_COLUMN!r}")
    values = history.apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all")
    names = [name for name in values.columns if name != X_COLUMN]
    return [
        _curve(str(name), meanings.get(str(name), ""), values[X_COLUMN], values[name])
        for name in names
        if not values.empty
    ]


def _curve(name: str, meaning: str, epochs: pd.Series, values: pd.Series) -> Curve:
    """Gaps in a column are left out of its line."""
    known = values.notna()
    x, y = epochs[known].to_numpy(float), values[known].to_numpy(float)
    low, high = float(y.min()), float(y.max())
    across = WIDTH * (x - epochs.min()) / max(float(epochs.max() - epochs.min()), 1)
    down = HEIGHT * (high - y) / (high - low) if high > low else np.full(len(y), HEIGHT / 2)
    places = [f"{right:.1f},{below:.1f}" for right, below in zip(across, down, strict=True)]
    if len(places) == 1:
        places.append(f"{across[0] + WIDTH / 20:.1f},{down[0]:.1f}")
    return Curve(
        name.replace("_", " "),
        meaning,
        " ".join(places),
        *(f"{value:.4g}" for value in (low, high, float(y[-1]))),
        *(f"{epoch:g}" for epoch in (epochs.min(), epochs.max())),
    )
