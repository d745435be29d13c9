"""Five common ways to score things and stuff separately, from one confusion matrix and one matching.

"Things: 48" in a table can mean any of them, and they can differ by tens of points (our comparison; the
official code of PiCIE uses one, its authors describe another). Over all classes together, all five are
equal.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int64

from stages.dataset.truth import UNMATCHED
from stages.scoring.confusion import Counted
from stages.scoring.metrics import ABSENT_RULES, Matcher, Scores, match_by_majority, score

Members = Int64[np.ndarray, " num_members"]


@dataclass(frozen=True)
class Matched:
    """Counts with one matching of their clusters to classes.

    Attributes:
        counted: the counts.
        matcher: matching function.
    """

    counted: Counted
    matcher: Matcher

    @functools.cached_property
    def cluster_to_class(self) -> Int64[np.ndarray, " K"]:
        """The matching of all classes."""
        return self.matcher(self.counted.matched_on)

    def rows(self, members: Members) -> Int64[np.ndarray, "C K"]:
        """The counts with pixels of all other classes set to 0, as if unlabeled."""
        confusion = self.counted.confusion
        return np.where(np.isin(np.arange(len(confusion)), members)[:, None], confusion, 0)


def truth_and_prediction(matched: Matched, members: Members) -> Scores:
    """Score pixels whose truth *and* prediction are in the partition; others are ignored.

    Pixels of a cluster without a class are kept and count as errors.
    """
    classes = matched.cluster_to_class
    elsewhere = (classes != UNMATCHED) & ~np.isin(classes, members)
    return score(np.where(elsewhere, 0, matched.rows(members)), classes, members)


def truth_alone(matched: Matched, members: Members) -> Scores:
    """Score pixels whose truth is in the partition, for any prediction; ignore the others."""
    return score(matched.rows(members), matched.cluster_to_class, members)


def own_matching(matched: Matched, members: Members) -> Scores:
    """Like `truth_alone`, with a separate matching of all clusters to the classes of the partition."""
    places = matched.matcher(matched.counted.matched_on[members])
    classes = np.where(places == UNMATCHED, UNMATCHED, members[places])
    return score(matched.rows(members), classes, members)


def averaged(matched: Matched, members: Members) -> Scores:
    """Score all classes on all pixels, then average over the classes of the partition."""
    return score(matched.counted.confusion, matched.cluster_to_class, members)


def legacy_picie(matched: Matched, members: Members) -> Scores | None:
    """Reproduce the official code of PiCIE, which uses cluster ids as class ids.

    Rows are sorted by the clusters they are matched with, and the block at the partition's class ids is
    scored. The classes in this block are arbitrary, so the score depends on the numbering of the clusters.
    None unless the matching is one-to-one for all classes and clusters.
    """
    counted, classes = matched.counted, matched.cluster_to_class
    identity = np.arange(len(classes))
    if not np.array_equal(np.sort(classes), np.arange(len(counted.confusion))):
        return None
    ordered = replace(counted, confusion=counted.confusion[classes])
    return truth_and_prediction(Matched(ordered, lambda _: identity), members)


READINGS: dict[str, Callable[[Matched, Members], Scores | None]] = {
    reading.__name__: reading
    for reading in (truth_and_prediction, truth_alone, own_matching, averaged, legacy_picie)
}


PARTITIONS = {"things": "thing", "stuff": "stuff"}  # name: kind of its classes
OVERALL = "overall"  # reading for all classes, where all five are equal
COLUMNS = ["score", "matching", "classes", "reading", "accuracy", "class_accuracy", "miou", "classes_counted"]
OTHER_RULES = list(ABSENT_RULES)[1:]


class Entry(NamedTuple):
    """One line of the table."""

    matching: str
    classes: str
    reading: str
    scores: Scores


def whole_score(one_to_one: Matched) -> list[Entry]:
    """Scores of all classes, and of things and stuff under each reading that is defined.

    A kind without classes has no entries. With more clusters than classes, many-to-one has entries too.

    Args:
        one_to_one: the counts with their one-to-one matching, see `match_by_overlap`.
    """
    counted = one_to_one.counted
    num_classes, num_clusters = counted.confusion.shape
    many = {"many_to_one": Matched(counted, match_by_majority)} if num_clusters > num_classes else {}
    return list(_entries({"one_to_one": one_to_one, **many})) if num_classes else []


def _entries(by_matching: Mapping[str, Matched]) -> Iterator[Entry]:
    for matching, matched in by_matching.items():
        everything = np.arange(len(matched.counted.confusion))
        yield Entry(matching, "all", OVERALL, averaged(matched, everything))
        for partition, members in _partitions(matched.counted.class_kinds).items():
            for reading, read in READINGS.items():
                scores = read(matched, members)
                if scores is not None:
                    yield Entry(matching, partition, reading, scores)


def _partitions(kinds: tuple[str, ...]) -> dict[str, Members]:
    ids = {name: np.flatnonzero(np.array(kinds) == kind) for name, kind in PARTITIONS.items()}
    return {name: members for name, members in ids.items() if members.size}


def as_table(entries: list[Entry]) -> pd.DataFrame:
    """One row per entry, with fractions in [0, 1]; an empty cell means 0 / 0."""
    rows = [
        (
            " · ".join([entry.classes, entry.reading] + [entry.matching] * (entry.matching != "one_to_one")),
            *entry[:3],
            *(or_empty(value) for value in (entry.scores.accuracy, entry.scores.class_accuracy)),
            or_empty(entry.scores.miou),
            entry.scores.classes_counted,
            *(or_empty(entry.scores.miou_by(rule)) for rule in OTHER_RULES),
        )
        for entry in entries
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, *(f"miou_{rule}" for rule in OTHER_RULES)])


def as_json(entries: list[Entry], confusion: Int64[np.ndarray, "C K"]) -> dict[str, Any]:
    """Nested by matching, classes and reading; with the mean IoU of all classes under each rule."""
    content: dict[str, Any] = {
        "num_classes": confusion.shape[0],
        "num_clusters": confusion.shape[1],
        "labelled_pixels": int(confusion.sum()),
    }
    for matching, classes, reading, scores in entries:
        figures = {
            "accuracy": or_null(scores.accuracy),
            "miou": or_null(scores.miou),
            "classes_counted": scores.classes_counted,
        }
        group = content.setdefault(matching, {})
        if reading != OVERALL:
            group.setdefault(classes, {})[reading] = figures
            continue
        group[classes] = figures
        group["absent_classes"] = {
            rule: {"miou": or_null(scores.miou_by(rule)), "classes_counted": len(scores.counted_iou(rule))}
            for rule in ABSENT_RULES
        }
    return content


def in_words(name: str, entries: list[Entry], confusion: Int64[np.ndarray, "C K"]) -> str:
    """The table in percent as text, with notes."""
    table = as_table(entries).drop(columns=["score", *(f"miou_{rule}" for rule in OTHER_RULES)])
    fractions = ["accuracy", "class_accuracy", "miou"]
    table[fractions] = table[fractions].apply(pd.to_numeric) * 100
    num_classes, num_clusters = confusion.shape
    lines = [
        f"{name}: {num_classes} classes, {num_clusters} clusters, {int(confusion.sum())} labeled pixels; "
        "in percent",
        table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.2f}"),
        "miou of all classes, under each rule for classes absent from the truth:",
    ]
    scores = entries[0].scores
    lines += [
        f"  {rule} ({meaning}): {100 * scores.miou_by(rule):.2f} of {len(scores.counted_iou(rule))} classes"
        for rule, meaning in ABSENT_RULES.items()
    ]
    if num_clusters > num_classes:
        lines.append(
            f"clusters without a class in one_to_one: {num_clusters - num_classes}; their pixels count as "
            "errors; many_to_one assigns each cluster to the class of most of its pixels"
        )
    if num_clusters < num_classes:
        missing = num_classes - num_clusters
        lines.append(f"classes without a cluster: {missing}; their IoU and accuracy are 0 if they occur")
    if num_clusters != num_classes:
        lines.append("legacy_picie is defined only for equal numbers of clusters and classes")
    return "\n".join(lines)


def or_null(value: float) -> float | None:
    """For JSON: NaN becomes null."""
    return value if math.isfinite(value) else None


def or_empty(value: float) -> float | str:
    """For table cells: NaN becomes empty."""
    return round(float(value), 6) if math.isfinite(value) else ""
