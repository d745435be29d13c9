"""Cards of the clusters, and the confusion matrix by their names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from stages.dataset.truth import UNMATCHED
from stages.reporting.legend import Legend, css

DARK_ABOVE = 0.7  # share of a row from which a cell of the heat map is so dark that its number is white


@dataclass(frozen=True)
class Member:
    """One cluster of a card: number, matched class or "" and its IoU in percent, name in its field."""

    cluster: int
    matched: str
    iou: str
    field: str


@dataclass(frozen=True)
class Card:
    """A cluster, or all clusters of one name.

    Attributes:
        key: the same key as in `Shot.shows`.
        name, colour: as everywhere on the page.
        members: its clusters.
        raw, refined: percent of the validation pixels, in the prediction and after the CRF.
        regions: `src` of its purest regions.
    """

    key: str
    name: str
    colour: str
    members: tuple[Member, ...]
    raw: float
    refined: float
    regions: tuple[str, ...]


def cluster_cards(
    legend: Legend,
    raw: Float[np.ndarray, " K"],
    refined: Float[np.ndarray, " K"],
    regions: Mapping[int, Sequence[str]],
    per_class: pd.DataFrame,
) -> list[Card]:
    """Make the cards, largest share first.

    Args:
        legend: names and colors.
        raw: pixel fraction of each cluster in the prediction.
        refined: the same after the CRF.
        regions: `src` of the regions of each cluster that stands for others.
        per_class: scores of each class; empty without truth.
    """
    iou = pd.to_numeric(per_class["iou"], errors="coerce").tolist()
    cards = []
    for stands in np.unique(legend.merged).tolist():
        members = np.flatnonzero(legend.merged == stands)
        cards.append(
            Card(
                f"k{stands}",
                legend.cluster_name(stands),
                css(legend.cluster_colours[stands]),
                tuple(_member(legend, int(one), iou) for one in members),
                100 * float(raw[members].sum()),
                100 * float(refined[members].sum()),
                tuple(regions[stands]),
            )
        )
    return sorted(cards, key=lambda card: -card.raw)


def _member(legend: Legend, cluster: int, iou: Sequence[float]) -> Member:
    class_id = int(legend.cluster_to_class[cluster])
    if class_id == UNMATCHED:
        return Member(cluster, "", "", legend.names.of.get(cluster, ""))
    matched = legend.class_names[class_id]
    shown = f"{100 * iou[class_id]:.1f}" if math.isfinite(iou[class_id]) else ""
    return Member(cluster, matched, shown, legend.names.of.get(cluster, matched))


def heat_map(confusion: pd.DataFrame, legend: Legend) -> dict[str, Any] | None:
    """The confusion matrix with a row for each class and a column for each card, merged clusters as one.

    Args:
        confusion: the table of `evaluate`, whose clusters are sorted by their class.
        legend: names and colors.

    Returns:
        Columns, and rows of cells; shares are those of the pixels of the class. None without truth.
    """
    if confusion.empty:
        return None
    stands = legend.merged[confusion["cluster"].to_numpy(np.int64)]
    table = confusion.assign(stands=stands).pivot_table(
        index="actual", columns="stands", values="pixels", aggfunc="sum", sort=False
    )
    columns = [
        {"name": legend.cluster_name(int(one)), "colour": css(legend.cluster_colours[one])}
        for one in table.columns
    ]
    rows = []
    for name, counts in zip(table.index, table.to_numpy(float), strict=True):
        shares = counts / max(counts.sum(), 1)
        cells = [
            {"share": round(float(one), 3), "percent": f"{100 * one:.0f}", "kind": _kind(one)}
            for one in shares
        ]
        rows.append({"name": str(name), "cells": cells})
    return {"columns": columns, "rows": rows}


def _kind(share: float) -> str:
    """How a cell is drawn: `dark` with a white number, `none` if its number is 0."""
    return "dark" if share > DARK_ABOVE else "none" if share < 0.005 else ""
