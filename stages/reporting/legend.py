"""Names and colours: a cluster wears those of the class that it was matched with."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int64, UInt8

from stages.dataset.truth import UNMATCHED, cluster_name
from stages.reporting.palette import palette
from stages.settings.errors import UserError


@dataclass(frozen=True)
class Legend:
    """Who is drawn in which colour.

    Attributes:
        class_names: empty where there is no truth.
        cluster_to_class: class id of each cluster, `UNMATCHED` where there is none.
    """

    class_names: tuple[str, ...]
    cluster_to_class: Int64[np.ndarray, " K"]

    @property
    def class_colours(self) -> UInt8[np.ndarray, "C 3"]:
        """RGB of each class id."""
        return palette(len(self.class_names))

    @property
    def cluster_colours(self) -> UInt8[np.ndarray, "K 3"]:
        """RGB of each cluster id: of its class, or the next free colours."""
        unmatched = self.cluster_to_class == UNMATCHED
        places = np.where(unmatched, len(self.class_names) + unmatched.cumsum() - 1, self.cluster_to_class)
        return palette(int(places.max()) + 1)[places]

    def cluster_name(self, cluster: int) -> str:
        """The name of the matched class, or "cluster 7"."""
        return cluster_name(self.class_names, int(self.cluster_to_class[cluster]), cluster)

    def entries(self) -> list[dict[str, str]]:
        """Name and CSS colour of everything that pictures show: classes, then clusters without one."""
        loose = np.flatnonzero(self.cluster_to_class == UNMATCHED)
        named = list(zip(self.class_names, self.class_colours, strict=True))
        named += [(f"cluster {cluster}", self.cluster_colours[cluster]) for cluster in loose]
        return [{"name": name, "colour": css(colour)} for name, colour in named]


def read_legend(class_names: tuple[str, ...], per_class: pd.DataFrame, num_clusters: int) -> Legend:
    """The legend from evaluate's table of classes, whose `cluster` column holds the matching.

    Raises:
        UserError: the table is not of these classes and clusters.
    """
    if tuple(per_class["class"].astype(str)) != class_names:
        raise UserError("per-class table: names other classes than the truth does; run `dvc repro evaluate`")
    cluster_to_class = np.full(num_clusters, UNMATCHED, np.int64)
    for class_id, cluster in enumerate(pd.to_numeric(per_class["cluster"], errors="coerce")):
        if cluster >= num_clusters:
            raise UserError(
                f"per-class table: has cluster {cluster:g} of {num_clusters}; run `dvc repro evaluate`"
            )
        if cluster >= 0:
            cluster_to_class[int(cluster)] = class_id
    return Legend(class_names, cluster_to_class)


def css(colour: UInt8[np.ndarray, " 3"]) -> str:
    """RGB as CSS writes it."""
    return "#" + "".join(f"{level:02x}" for level in colour.tolist())
