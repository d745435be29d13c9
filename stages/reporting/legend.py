"""Names and colors of classes and clusters: given ones (names.yaml), or those of the matched class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64, UInt8

from stages.core.artefacts import read_json, unreadable, write_json
from stages.dataset.truth import UNMATCHED, cluster_name
from stages.reporting.names import Names
from stages.reporting.palette import palette
from stages.settings.errors import UserError


@dataclass(frozen=True)
class Legend:
    """Names and colors of class and cluster ids.

    Attributes:
        class_names: empty without ground truth.
        cluster_to_class: class id of each cluster, or `UNMATCHED`.
        names: names and colors that people gave; they come before those of the matched class.
    """

    class_names: tuple[str, ...]
    cluster_to_class: Int64[np.ndarray, " K"]
    names: Names = field(default_factory=Names)

    @cached_property
    def class_colours(self) -> UInt8[np.ndarray, "C 3"]:
        """RGB of each class id: the color that was given to its name, or the next one."""
        colours = palette(len(self.class_names)).copy()
        for class_id, name in enumerate(self.class_names):
            colours[class_id] = self.names.colours.get(name, colours[class_id])
        return colours

    @cached_property
    def merged(self) -> UInt8[np.ndarray, " K"]:
        """The cluster that stands for each cluster: the lowest with its name, given or of its class."""
        first: dict[str, int] = {}
        names = map(self.cluster_name, range(len(self.cluster_to_class)))
        return np.array([first.setdefault(name, one) for one, name in enumerate(names)], np.uint8)

    @cached_property
    def cluster_colours(self) -> UInt8[np.ndarray, "K 3"]:
        """RGB of each cluster id: that of its name, of its matched class, or the next free color."""
        classes, unmatched = self.class_colours, self.cluster_to_class == UNMATCHED
        places = np.where(unmatched, len(classes) + unmatched.cumsum() - 1, self.cluster_to_class)
        free = palette(len(classes) + int(unmatched.sum()))[len(classes) :]
        colours = np.concatenate([classes, free])[places][self.merged]
        of_names = {**dict(zip(self.class_names, classes, strict=True)), **self.names.colours}
        for cluster in range(len(colours)):
            colours[cluster] = of_names.get(self.cluster_name(cluster), colours[cluster])
        return colours

    @cached_property
    def shows_matching(self) -> bool:
        """Whether a cluster has the color of a class if it is matched with it, and else not.

        Given names can have it otherwise: scores follow the matching, and colors the names.
        """
        has_colour = (self.cluster_colours[:, None] == self.class_colours).all(2)
        return np.array_equal(has_colour, self.cluster_to_class[:, None] == np.arange(len(self.class_names)))

    def cluster_name(self, cluster: int) -> str:
        """Return the given name, that of the matched class, or a name such as "cluster 7"."""
        matched = cluster_name(self.class_names, int(self.cluster_to_class[cluster]), cluster)
        return self.names.of.get(cluster, matched)

    def entries(self) -> list[dict[str, str]]:
        """List name and CSS color of all classes, then of all clusters with another name."""
        named = list(zip(self.class_names, self.class_colours, strict=True))
        loose = {
            self.cluster_name(int(one)): self.cluster_colours[one]
            for one in np.unique(self.merged)
            if one in self.names.of or self.cluster_to_class[one] == UNMATCHED
        }
        named += [(name, colour) for name, colour in loose.items() if name not in self.class_names]
        return [{"name": name, "colour": css(colour)} for name, colour in named]


@dataclass(frozen=True)
class ClusterLegend:
    """What legend.json says of the clusters.

    Attributes:
        names: name of each cluster id.
        colours: RGB of each cluster id.
        merged: the cluster that stands for each cluster; others of the same name are merged with it.
    """

    names: tuple[str, ...]
    colours: UInt8[np.ndarray, "K 3"]
    merged: UInt8[np.ndarray, " K"]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each cluster, as JSON has it."""
        columns = zip(self.names, self.colours, self.merged, strict=True)
        return [
            {"id": number, "name": name, "color": css(colour), "merged_into": int(stands)}
            for number, (name, colour, stands) in enumerate(columns)
        ]


def plain_legend(num_clusters: int, names: Names) -> ClusterLegend:
    """Legend of clusters without a report: given names and colors, else "cluster 7" and the palette."""
    legend = Legend((), np.full(num_clusters, UNMATCHED, np.int64), names)
    return cluster_legend(legend)


def cluster_legend(legend: Legend) -> ClusterLegend:
    """The part of a legend that is about clusters."""
    names = tuple(legend.cluster_name(one) for one in range(len(legend.cluster_to_class)))
    return ClusterLegend(names, legend.cluster_colours, legend.merged)


def write_cluster_legend(path: Path, legend: ClusterLegend, clusters: str) -> None:
    """Write legend.json; `clusters` is their fingerprint."""
    write_json(path, {"made_for": clusters, "clusters": legend.rows()})


def read_cluster_legend(path: Path, clusters: str) -> ClusterLegend | None:
    """Read legend.json; None if it is of other clusters than those with this fingerprint.

    Raises:
        UserError: the file is missing or not a legend.
    """
    content: Any = read_json(path)
    try:
        if content["made_for"] != clusters:
            return None
        rows = content["clusters"]
        names = tuple(str(row["name"]) for row in rows)
        colours = rgb([row["color"] for row in rows])
        return ClusterLegend(names, colours, np.array([row["merged_into"] for row in rows], np.uint8))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(unreadable(path, "a legend of this project", error)) from error


def read_legend(
    class_names: tuple[str, ...], per_class: pd.DataFrame, num_clusters: int, names: Names
) -> Legend:
    """Build the legend from the per-class table of `evaluate`, whose `cluster` column is the matching.

    A match of no pixel is none: the matching for scores is complete, and gives clusters that are left over to
    classes that do not occur.

    Raises:
        UserError: the table has other classes or clusters.
    """
    if tuple(per_class["class"].astype(str)) != class_names:
        raise UserError("per-class table: has other classes than the ground truth; run `dvc repro evaluate`")
    cluster_to_class = np.full(num_clusters, UNMATCHED, np.int64)
    matched = per_class[["cluster", "iou"]].apply(pd.to_numeric, errors="coerce")
    for class_id, (cluster, iou) in enumerate(matched.to_numpy(float)):
        if cluster >= num_clusters:
            raise UserError(
                f"per-class table: has cluster {cluster:g}, but there are {num_clusters} clusters; "
                "run `dvc repro evaluate`"
            )
        if cluster >= 0 and iou > 0:
            cluster_to_class[int(cluster)] = class_id
    return Legend(class_names, cluster_to_class, names)


def css(colour: UInt8[np.ndarray, " 3"]) -> str:
    """Format RGB as a CSS color."""
    return "#" + "".join(f"{level:02x}" for level in colour.tolist())


def rgb(colours: Sequence[str]) -> UInt8[np.ndarray, "K 3"]:
    """RGB of CSS colors as `css` formats them."""
    return np.array([tuple(bytes.fromhex(colour.removeprefix("#"))) for colour in colours], np.uint8)
