"""The whole truth of a score: every matching, partition, reading and rule, as table, as JSON and in print."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int64

from stages.scoring.matching import Matcher, match_by_majority, match_by_overlap
from stages.scoring.metrics import ABSENT_RULES, Scores
from stages.scoring.readings import READINGS, Matched, Members, averaged

PARTITIONS = {"things": "thing", "stuff": "stuff"}  # and the kind of their classes
OVERALL = "overall"  # the reading of all classes, where the five are one
COLUMNS = ["score", "matching", "classes", "reading", "accuracy", "class_accuracy", "miou", "classes_counted"]
OTHER_RULES = list(ABSENT_RULES)[1:]


class Entry(NamedTuple):
    """One line of the table."""

    matching: str
    classes: str
    reading: str
    scores: Scores


def whole_score(
    confusion: Int64[np.ndarray, "C K"], matched_on: Int64[np.ndarray, "C K"], kinds: tuple[str, ...]
) -> list[Entry]:
    """Scores of all classes, and of things and stuff in each reading that is defined.

    Args:
        confusion: pixels of each [class, cluster].
        matched_on: the counts that decide the matching.
        kinds: thing, stuff or nothing for each class; a kind without a class has no lines.
    """
    return list(_entries(confusion, matched_on, kinds)) if len(confusion) else []


def _entries(confusion: np.ndarray, matched_on: np.ndarray, kinds: tuple[str, ...]) -> Iterator[Entry]:
    for matching, matcher in _matchers(*confusion.shape).items():
        matched = Matched(confusion, matched_on, matcher)
        everything = np.arange(len(confusion))
        yield Entry(matching, "all", OVERALL, averaged(matched, everything))
        for partition, members in _partitions(kinds).items():
            for reading, read in READINGS.items():
                scores = read(matched, members)
                if scores is not None:
                    yield Entry(matching, partition, reading, scores)


def _matchers(num_classes: int, num_clusters: int) -> dict[str, Matcher]:
    """Many clusters to one class only where there are more of them: else it says nothing new."""
    many = {"many_to_one": match_by_majority} if num_clusters > num_classes else {}
    return {"one_to_one": match_by_overlap, **many}


def _partitions(kinds: tuple[str, ...]) -> dict[str, Members]:
    ids = {name: np.flatnonzero(np.array(kinds) == kind) for name, kind in PARTITIONS.items()}
    return {name: members for name, members in ids.items() if members.size}


def as_table(entries: list[Entry]) -> pd.DataFrame:
    """One row for each line; an empty cell is 0 of 0. Fractions in [0, 1]."""
    rows = [
        (
            " · ".join([entry.classes, entry.reading] + [entry.matching] * (entry.matching != "one_to_one")),
            *entry[:3],
            *(_cell(value) for value in (entry.scores.accuracy, entry.scores.class_accuracy)),
            _cell(entry.scores.miou),
            entry.scores.classes_counted,
            *(_cell(entry.scores.miou_by(rule)) for rule in OTHER_RULES),
        )
        for entry in entries
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, *(f"miou_{rule}" for rule in OTHER_RULES)])


def as_json(entries: list[Entry], confusion: Int64[np.ndarray, "C K"]) -> dict[str, Any]:
    """The same in groups: matching, classes, reading; and the mean IoU of all classes by each rule."""
    content: dict[str, Any] = {
        "num_classes": confusion.shape[0],
        "num_clusters": confusion.shape[1],
        "labelled_pixels": int(confusion.sum()),
    }
    for matching, classes, reading, scores in entries:
        figures = {
            "accuracy": _null(scores.accuracy),
            "miou": _null(scores.miou),
            "classes_counted": scores.classes_counted,
        }
        group = content.setdefault(matching, {})
        if reading != OVERALL:
            group.setdefault(classes, {})[reading] = figures
            continue
        group[classes] = figures
        group["absent_classes"] = {
            rule: {"miou": _null(scores.miou_by(rule)), "classes_counted": len(scores.counted_iou(rule))}
            for rule in ABSENT_RULES
        }
    return content


def in_words(name: str, entries: list[Entry], confusion: Int64[np.ndarray, "C K"]) -> str:
    """The table in per cent, and what a reader has to know about it."""
    table = as_table(entries).drop(columns=["score", *(f"miou_{rule}" for rule in OTHER_RULES)])
    fractions = ["accuracy", "class_accuracy", "miou"]
    table[fractions] = table[fractions].apply(pd.to_numeric) * 100
    num_classes, num_clusters = confusion.shape
    lines = [
        f"{name}: {num_classes} classes, {num_clusters} clusters, {int(confusion.sum())} labelled pixels; "
        "in per cent",
        table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.2f}"),
        "miou of all classes, by what a class that is not in the truth counts as:",
    ]
    scores = entries[0].scores
    lines += [
        f"  {rule} ({meaning}): {100 * scores.miou_by(rule):.2f} of {len(scores.counted_iou(rule))} classes"
        for rule, meaning in ABSENT_RULES.items()
    ]
    if num_clusters > num_classes:
        lines.append(
            f"clusters without a class in one_to_one: {num_clusters - num_classes}, and their pixels are "
            "wrong; many_to_one gives each cluster the class of most of its pixels"
        )
    if num_clusters < num_classes:
        lines.append(
            f"classes without a cluster: {num_classes - num_clusters}, and their IoU and accuracy are 0"
        )
    if num_clusters != num_classes:
        lines.append("legacy_picie is defined for as many clusters as classes only")
    return "\n".join(lines)


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cell(value: float) -> float | str:
    return round(value, 6) if math.isfinite(value) else ""
