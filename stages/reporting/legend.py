"""Names and colors of classes and clusters; a cluster has those of its matched class."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int64, UInt8

from stages.dataset.truth import UNMATCHED, cluster_name
from stages.reporting.palette import palette
from stages.settings.errors import UserError


@dataclass(frozen=True)
class Legend:
    """Names and colors of class and cluster ids.

    Attributes:
        class_names: empty without ground truth.
        cluster_to_class: class id of each cluster, or `UNMATCHED`.
    """

    class_names: tuple[str, ...]
    cluster_to_class: Int64[np.ndarray, " K"]

    @property
    def class_colours(self) -> UInt8[np.ndarray, "C 3"]:
        """RGB of each class id."""
        return palette(len(self.class_names))

    @property
    def cluster_colours(self) -> UInt8[np.ndarray, "K 3"]:
        """RGB of each cluster id: the color of its class, or the next free color."""
        unmatched = self.cluster_to_class == UNMATCHED
        places = np.where(unmatched, len(self.class_names) + unmatched.cumsum() - 1, self.cluster_to_class)
        return palette(int(places.max()) + 1)[places]

    def cluster_name(self, cluster: int) -> str:
        """Return the name of the matched class, or a name such as "cluster 7"."""
        return cluster_name(self.class_names, int(self.cluster_to_class[cluster]), cluster)

    def entries(self) -> list[dict[str, str]]:
        """List name and CSS color of all classes, then of all unmatched clusters."""
        loose = np.flatnonzero(self.cluster_to_class == UNMATCHED)
        named = list(zip(self.class_names, self.class_colours, strict=True))
        named += [(f"cluster {cluster}", self.cluster_colours[cluster]) for cluster in loose]
        return [{"name": name, "colour": css(colour)} for name, colour in named]


def read_legend(class_names: tuple[str, ...], per_class: pd.DataFrame, num_clusters: int) -> Legend:
    """Build the legend from the per-class table of `evaluate`, whose `cluster` column is the matching.

    Raises:
        UserError: the table has other classes or clusters.
    """
    if tuple(per_class["class"].astype(str)) != class_names:
        raise UserError("per-class table: has other classes than the ground truth; run `dvc repro evaluate`")
    cluster_to_class = np.full(num_clusters, UNMATCHED, np.int64)
    for class_id, cluster in enumerate(pd.to_numeric(per_class["cluster"], errors="coerce")):
        if cluster >= num_clusters:
            raise UserError(
                f"per-class table: has cluster {cluster:g}, but there are {num_clusters} clusters; "
                "run `dvc repro evaluate`"
            )
        if cluster >= 0:
            cluster_to_class[int(cluster)] = class_id
    return Legend(class_names, cluster_to_class)


def css(colour: UInt8[np.ndarray, " 3"]) -> str:
    """Format RGB as a CSS color."""
    return "#" + "".join(f"{level:02x}" for level in colour.tolist())
