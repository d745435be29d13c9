"""Label maps as pre-annotations of other programs; each format is a module beside this one."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from stages.core.atomic import atomic_path
from stages.reporting.legend import ClusterLegend, css
from stages.tools.segmenting.reading_back import count_ids, merge, read_ids


@dataclass(frozen=True)
class Label:
    """A label of the masks.

    Attributes:
        id: value in the masks; the lowest of merged clusters.
        name: unique among the labels.
        colour: CSS color.
    """

    id: int
    name: str
    colour: str


class LabelMap(NamedTuple):
    """A decoded label map.

    Attributes:
        ids: cluster id of each pixel; merged clusters have become one.
        labels: those that occur.
    """

    ids: UInt8[np.ndarray, "H W"]
    labels: tuple[Label, ...]

    def masks(self) -> Iterator[tuple[Label, Bool[np.ndarray, "H W"]]]:
        """Yield each label that occurs, with its pixels."""
        yield from ((label, self.ids == label.id) for label in self.labels)


@dataclass(frozen=True)
class Annotated:
    """An image with its label map on disk.

    Attributes:
        folder: name of the folder that all photographs have in common; empty for the root of a disk.
        source: path of the photograph below it, with slashes.
        mask: the label map.
        width: px.
        height: px.
        confidence: mean over the pixels, 0 to 1.
        merged: the cluster that stands for each cluster.
        colours: RGB of each cluster, with which the label map was written.
    """

    folder: str
    source: str
    mask: Path
    width: int
    height: int
    confidence: float
    merged: UInt8[np.ndarray, " K"]
    colours: UInt8[np.ndarray, "K 3"]

    def label_map(self, labels: Sequence[Label]) -> LabelMap:
        """Decode the label map."""
        ids = read_ids(self.mask, (self.width, self.height), self.colours, self.merged)
        ids = merge(ids, self.merged)
        counts = count_ids(ids)
        return LabelMap(ids, tuple(label for label in labels if counts[label.id]))


# Writes what an image adds to the file of a format.
Add = Callable[[Annotated, LabelMap], None]
# Opens the files of a format, and closes them when all images have been added in their order.
Write = Callable[[Path, Sequence[Annotated], Sequence[Label], str], AbstractContextManager[Add]]


class Format(NamedTuple):
    """A format of another program.

    Attributes:
        write: opens its files.
        files: names of those that it always has.
        parts: names of more files, where one would be too large.
    """

    write: Write
    files: tuple[str, ...]
    parts: re.Pattern[str] | None = None

    def has(self, name: str) -> bool:
        """Whether a file in the output folder is of this format, by its name."""
        return name in self.files or (self.parts is not None and self.parts.fullmatch(name) is not None)


def unique_labels(legend: ClusterLegend) -> list[Label]:
    """The labels that masks may have.

    Clusters of one name that the report of an earlier version has not merged get their number as well.
    """
    ids = [int(one) for one in np.unique(legend.merged)]
    names = [legend.names[one] for one in ids]
    return [
        Label(
            one,
            name if names.count(name) == 1 else f"{name} (cluster {one})",
            css(legend.colours[one]),
        )
        for one, name in zip(ids, names, strict=True)
    ]


def runs(mask: Bool[np.ndarray, "H W"]) -> Int64[np.ndarray, " R"]:
    """Lengths of the runs of equal pixels, row by row, the first of background and so perhaps 0."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths = np.diff(ends, prepend=0)
    return np.insert(lengths, 0, 0) if flat[0] else lengths


@contextmanager
def json_list(path: Path, head: str, tail: str) -> Iterator[Callable[[str], None]]:
    """Write items in JSON one by one, so that memory does not grow with their number.

    Args:
        path: file to write.
        head: text before the first.
        tail: text after the last.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(head)
        signs = itertools.chain([""], itertools.repeat(","))
        yield lambda item: print(next(signs), item, sep="\n", end="", file=file)
        file.write("\n" + tail)
