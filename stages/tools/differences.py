"""How two runs differ: rows of scores, settings and clusters, and pairs of images."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stages.dataset.truth import UNMATCHED
from stages.reporting.page import COLUMNS, label_shares
from stages.reporting.wall import Shot, spread
from stages.settings.errors import UserError
from stages.tools.revision import Run

NAMELESS = "clusters without a name"
NONE = "–"  # where a run has nothing


def image_keys(run: Run) -> list[tuple[str, str, str]]:
    """What tells the validation images of a run apart; of two tiles of one file, the id does."""
    return list(zip(run.index["source"], run.index["id"], run.index["sha256"], strict=True))


def shared_images(one: Run, other: Run, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of up to `most` images that both runs have, evenly spaced, in each of them.

    Raises:
        UserError: they share none.
    """
    keys = [{key: place for place, key in enumerate(image_keys(run))} for run in (one, other)]
    shared = [key for key in keys[0] if key in keys[1]]
    if not shared:
        raise UserError(f"{one.revision} and {other.revision} have no validation image in common")
    chosen = [shared[place] for place in spread(len(shared), most)]
    return np.array([keys[0][key] for key in chosen]), np.array([keys[1][key] for key in chosen])


def changed_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Keys whose values differ, with both; a key that a run does not have has a dash."""
    for key in dict.fromkeys((*one, *other)):
        values = [json.dumps(run[key], ensure_ascii=False) if key in run else NONE for run in (one, other)]
        if values[0] != values[1]:
            yield key, values[0], values[1]


def score_differences(one: Run, other: Run) -> list[tuple[str, str, str, str]]:
    """Rows of (name, first, second, second minus first): percent, or a number for counts.

    Where one run has a CRF, the other has dashes in its rows.
    """
    rows = []
    for partition, name in (("raw", "prediction"), ("refined", "prediction + CRF")):
        there = [partition == "raw" or run.split.has_crf for run in (one, other)]
        for key, heading, kind in COLUMNS:
            values = [run.metrics[partition].get(key) for run in (one, other)]
            if any(there) and None not in values:
                scale = 100 if kind == "fraction" else 1
                first, second = (scale * float(value) for value in values)
                digits = 0 if kind == "count" else 1
                one_shown = f"{first:.{digits}f}" if there[0] else NONE
                other_shown = f"{second:.{digits}f}" if there[1] else NONE
                difference = f"{second - first:+.{digits}f}" if all(there) else NONE
                rows.append((f"{name}: {heading}", one_shown, other_shown, difference))
    return rows


def sizes_heading(one: Run, other: Run) -> str:
    """What the rows of `cluster_rows` are."""
    count = one.split.has_crf + other.split.has_crf
    return "percent of the pixels" + ("", ", after the CRF where there is one", ", after the CRF")[count]


def cluster_rows(one: Run, other: Run) -> list[tuple[str, str, str, str]]:
    """Share of each name in percent, after the CRF if any, largest first; without names by rank."""
    if any(run.legend.class_names or run.legend.names.of for run in (one, other)):
        shares = [_shares(run) for run in (one, other)]
    else:
        ranked = [sorted(_percent(run), reverse=True) for run in (one, other)]
        shares = [
            {f"number {rank} by size": share for rank, share in enumerate(table, 1)} for table in ranked
        ]
    rows = []
    names = dict.fromkeys((*shares[0], *shares[1]))
    for name in sorted(names, key=lambda name: -max(table.get(name, 0.0) for table in shares)):
        first, second = (table.get(name, 0.0) for table in shares)
        rows.append((name, f"{first:.1f}", f"{second:.1f}", f"{second - first:+.1f}"))
    return rows


def legends(one: Run, other: Run) -> list[list[dict[str, str]]]:
    """The legend of both runs; that of each, where they differ."""
    both = [run.legend.entries() for run in (one, other)]
    return both[:1] if both[0] == both[1] else both


def truth_differs(one: Run, other: Run) -> bool:
    """Whether the classes have other names or colors in the second run."""
    both = [(run.legend.class_names, run.legend.class_colours.tolist()) for run in (one, other)]
    return both[0] != both[1]


def swatches(entries: list[list[dict[str, str]]], names: Collection[str]) -> dict[str, list[str]]:
    """CSS colors of each name that has one; two, where a name has another color in the second run.

    Args:
        entries: of `legends`.
        names: those to color.
    """
    found: dict[str, list[str]] = {}
    for entry in (entry for legend in entries for entry in legend if entry["name"] in names):
        colours = found.setdefault(entry["name"], [])
        if entry["colour"] not in colours:
            colours.append(entry["colour"])
    return found


def _percent(run: Run) -> list[float]:
    """Percent of the pixels of each cluster, after the CRF if there is one."""
    return (100 * label_shares(run.split.refined, len(run.legend.merged))).tolist()


def _shares(run: Run) -> dict[str, float]:
    """Percent of the pixels of each name; a given name and a matched class can be the same.

    Numbers of clusters mean nothing in another run, so those without a name are added up.
    """
    shares: dict[str, float] = {}
    legend = run.legend
    for cluster, share in enumerate(_percent(run)):
        is_named = cluster in legend.names.of or legend.cluster_to_class[cluster] != UNMATCHED
        name = legend.cluster_name(cluster) if is_named else NAMELESS
        shares[name] = shares.get(name, 0.0) + share
    return shares


def in_order(one: Sequence[Shot], other: Sequence[Shot], *, has_truth: bool) -> list[tuple[Shot, Shot]]:
    """Pairs of the same image, those first whose accuracy differs most; without truth as in the data set."""
    pairs = list(zip(one, other, strict=True))
    if not has_truth:
        return pairs

    def difference(pair: tuple[Shot, Shot]) -> float:
        first, second = (shot.score for shot in pair)
        return 0.0 if first is None or second is None else abs(second - first)

    return sorted(pairs, key=lambda pair: -difference(pair))
