"""Five ways in which the field scores things and stuff apart, from one confusion matrix and one matching.

"Things: 48" in a table can mean any of them, and they lie tens of points apart (our comparison; the
official code of PiCIE does one, its authors describe another). Each is named here for what it does. Over
all classes together the five are one and the same number.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from stages.scoring.matching import UNMATCHED, Matcher
from stages.scoring.metrics import Scores, score

Members = Int64[np.ndarray, " num_members"]


@dataclass(frozen=True)
class Matched:
    """A confusion matrix and how its clusters stand for classes.

    Attributes:
        confusion: pixels of each [class, cluster].
        matched_on: the counts that decide the matching: those of the raw prediction also for the CRF's.
        matcher: what decides it.
    """

    confusion: Int64[np.ndarray, "C K"]
    matched_on: Int64[np.ndarray, "C K"]
    matcher: Matcher

    @property
    def cluster_to_class(self) -> Int64[np.ndarray, " K"]:
        """The matching of all classes."""
        return self.matcher(self.matched_on)

    def rows(self, members: Members) -> Int64[np.ndarray, "C K"]:
        """The counts with pixels of other classes ignored, as if they were not labelled."""
        return np.where(np.isin(np.arange(len(self.confusion)), members)[:, None], self.confusion, 0)


def truth_and_prediction(matched: Matched, members: Members) -> Scores:
    """Pixels whose truth *and* prediction are of the partition; predicted as the other one, they vanish.

    Pixels of a cluster without a class stay, and are wrong.
    """
    classes = matched.cluster_to_class
    elsewhere = (classes != UNMATCHED) & ~np.isin(classes, members)
    return score(np.where(elsewhere, 0, matched.rows(members)), classes, members)


def truth_alone(matched: Matched, members: Members) -> Scores:
    """Pixels whose truth is of the partition, whatever is predicted; the others are ignored."""
    return score(matched.rows(members), matched.cluster_to_class, members)


def own_matching(matched: Matched, members: Members) -> Scores:
    """As `truth_alone`, with a matching of the partition's own: all clusters stand for its classes."""
    places = matched.matcher(matched.matched_on[members])
    classes = np.where(places == UNMATCHED, UNMATCHED, members[places])
    return score(matched.rows(members), classes, members)


def averaged(matched: Matched, members: Members) -> Scores:
    """Scores of the classes among all pixels, averaged over the partition: both parts make up the whole."""
    return score(matched.confusion, matched.cluster_to_class, members)


def legacy_picie(matched: Matched, members: Members) -> Scores | None:
    """What the official code of PiCIE does: it cuts where it takes cluster ids for class ids.

    Rows are put into the order of the clusters that they are matched with, and the block at the places of
    the partition's class ids is scored. Which classes that block holds is chance, and so the figure moves
    with the numbering of the clusters. None unless each class has one cluster and each cluster one class.
    """
    classes = matched.cluster_to_class
    identity = np.arange(len(classes))
    if not np.array_equal(np.sort(classes), np.arange(len(matched.confusion))):
        return None
    ordered = Matched(matched.confusion[classes], matched.matched_on, lambda _: identity)
    return truth_and_prediction(ordered, members)


READINGS: dict[str, Callable[[Matched, Members], Scores | None]] = {
    reading.__name__: reading
    for reading in (truth_and_prediction, truth_alone, own_matching, averaged, legacy_picie)
}
