"""Which clusters are in use, and which earlier ones they continue, so that numbers and names stay (ours)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.core.hashes import fingerprint
from stages.core.tensors import read_tensors


@dataclass(frozen=True)
class Lineage:
    """The clusters in use, and earlier ones whose numbers they keep.

    Attributes:
        own: fingerprint of the clusters in use.
        earlier: fingerprints of the earlier ones.
        void: for each earlier fingerprint, the numbers that have another meaning now.
    """

    own: str
    earlier: tuple[str, ...] = ()
    void: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __contains__(self, clusters: str) -> bool:
        return clusters in (self.own, *self.earlier)


def lineage(centroids: Path) -> Lineage:
    """The lineage of the clusters in a file of `cluster`.

    Raises:
        UserError: the file cannot be read.
    """
    _, about = read_tensors(centroids, "centroids")
    return Lineage(fingerprint(centroids), tuple(about.get("continues", ())), about.get("void", {}))
