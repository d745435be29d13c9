"""Sources of pseudo-labels of whole views (4.2.1): k-means, SwAV prototypes, or a classifier.

Each kind maps view features to a space with unit-length centers; a view is assigned to the center with the
highest cosine.

kmeans      unit features; the centers are k-means centroids.
projector   embeddings of the projection head; the centers are k-means centroids (A.1; 4.2.1 says features).
prototypes  embeddings of the projection head; the centers are the prototypes, clustered into K groups.
classifier  class probabilities; the centers are the K most frequently predicted classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stages.clustering.kmeans import KMeans, assign, check_finite
from stages.core.tensors import read_tensors
from stages.settings.errors import UserError

SUPERVISED = "; a classifier needs pretrain.method: supervised"
DIVERGED = (
    "label: some features are not finite; the network of `pretrain` has diverged; lower pretrain.lr, or set "
    "precision: float32"
)
PART_VIEWS = 1 << 16  # at a time on the device, to bound memory


def read_heads(path: Path) -> dict[str, Tensor]:
    """Read the heads stored with a trunk of this project.

    Raises:
        UserError: the file is not a safetensors file of this project.
    """
    tensors, about = read_tensors(path)
    return {name: tensors[name] for name in about.get("heads", ())}


def project(feature: Float[Tensor, "N C"], heads: Mapping[str, Tensor]) -> Float[Tensor, "N D"]:
    """Unit embeddings from the projection head in evaluation mode."""
    hidden = F.linear(feature, heads["projection.0.weight"], heads.get("projection.0.bias"))
    if "projection.1.running_mean" in heads:
        hidden = F.batch_norm(
            hidden,
            heads["projection.1.running_mean"],
            heads["projection.1.running_var"],
            heads["projection.1.weight"],
            heads["projection.1.bias"],
        )
    embedding = F.linear(F.relu(hidden), heads["projection.3.weight"], heads.get("projection.3.bias"))
    return F.normalize(embedding, dim=1)


def class_probabilities(feature: Float[Tensor, "N C"], heads: Mapping[str, Tensor]) -> Float[Tensor, "N K"]:
    """Class probabilities of a supervised classifier."""
    return F.linear(feature, heads["classifier.weight"], heads.get("classifier.bias")).softmax(1)


Heads = Mapping[str, Tensor]  # of the pretrained model


def choose_centres(asked: str, heads: Heads) -> str:
    """Return `asked`, or for `auto` the first supported kind of prototypes, classifier, kmeans.

    Raises:
        UserError: the pretrained model lacks the heads for the requested kind.
    """
    allowed = [name for name, kind in KINDS.items() if set(kind.needs) <= set(heads)]
    if asked == "auto":
        return allowed[0]
    if asked not in allowed:
        raise UserError(
            f"params.yaml: label.centres: {asked} needs a pretrained model with "
            f"{', '.join(KINDS[asked].needs)}, but this one supports only {', '.join(allowed)}; set one of "
            f"these or auto, or choose another pretrain.init{SUPERVISED if asked == 'classifier' else ''}"
        )
    return asked


class Space:
    """The space in which views are compared with centers of one kind.

    Args:
        name: name of the kind.
        heads: of the pretrained model.
        device: device of the mapping.
    """

    def __init__(self, name: str, heads: Heads, device: torch.device) -> None:
        self._kind, self._device = KINDS[name], device
        self._heads = {name: heads[name].to(device) for name in heads}

    @torch.no_grad()
    def points(self, features: Float[np.ndarray, "N C"]) -> Float[Tensor, "N D"]:
        """Map view features, possibly memory-mapped, to this space, on its device.

        Raises:
            UserError: a feature is not finite.
        """
        return torch.cat([self._bring(features[rows]) for rows in _parts(len(features))])

    def centres(self, points: Float[Tensor, "N D"], kmeans: KMeans, *, seed: int) -> Float[Tensor, "K D"]:
        """Compute K unit-length centers.

        Args:
            points: views in this space that determine the centers.
            kmeans: k-means settings; defines K for every kind.
            seed: seed of k-means.

        Raises:
            UserError: there are fewer points, prototypes or classes than clusters.
        """
        return self._kind.centres(points, self._heads, kmeans, seed)

    def assign(
        self, features: Float[np.ndarray, "N C"], runs: Sequence[Float[Tensor, "K D"]]
    ) -> list[tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]]:
        """Nearest center of each view and its score, for several sets of centers, in bounded memory.

        The score is the cosine, or with `classifier`, whose points are probabilities, that of the class.

        Raises:
            UserError: a feature is not finite.
        """
        label = np.empty((len(runs), len(features)), dtype=np.int64)
        score = np.empty((len(runs), len(features)), dtype=np.float32)
        for rows in _parts(len(features)):
            points = self.points(features[rows])
            for run, centroids in enumerate(runs):
                nearest, best = assign(points, centroids, "dot")
                label[run, rows], score[run, rows] = nearest.cpu().numpy(), best.cpu().numpy()
        return list(zip(label, score, strict=True))

    def _bring(self, features: Float[np.ndarray, "N C"]) -> Float[Tensor, "N D"]:
        feature = torch.from_numpy(np.array(features)).to(self._device)
        points = self._kind.bring(feature, self._heads)
        check_finite(points, DIVERGED)
        return points


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, PART_VIEWS):
        yield slice(start, start + PART_VIEWS)


def _unit_features(feature: Float[Tensor, "N C"], _: Heads) -> Float[Tensor, "N C"]:
    return F.normalize(feature, dim=1)


def _clusters(points: Float[Tensor, "N D"], _: Heads, kmeans: KMeans, seed: int) -> Float[Tensor, "K D"]:
    return kmeans.fit(points, seed=seed)


def _grouped_prototypes(
    _: Float[Tensor, "N D"], heads: Heads, kmeans: KMeans, seed: int
) -> Float[Tensor, "K D"]:
    prototypes = F.normalize(heads["prototypes.weight"].float(), dim=1)
    _check_enough(len(prototypes), kmeans.num_clusters, "prototypes")
    return kmeans.fit(prototypes, seed=seed)


def _frequent_classes(
    probability: Float[Tensor, "N C"], _: Heads, kmeans: KMeans, __: int
) -> Float[Tensor, "K C"]:
    """One unit vector per most frequent class, sorted by class id; ties go to the lower id."""
    num_classes = probability.shape[1]
    _check_enough(num_classes, kmeans.num_clusters, "classes of the classifier")
    counts = torch.bincount(probability.argmax(1), minlength=num_classes)
    frequent = counts.argsort(descending=True, stable=True)[: kmeans.num_clusters].sort().values
    return torch.eye(num_classes, device=probability.device)[frequent]


def _check_enough(available: int, num_clusters: int, what: str) -> None:
    if available < num_clusters:
        raise UserError(
            f"params.yaml: global_k: {num_clusters} is more than the {available} {what}; lower it or set "
            "label.centres: kmeans"
        )


class Kind(NamedTuple):
    """The required heads, the mapping of features to the space, and the computation of centers."""

    needs: tuple[str, ...]
    bring: Callable[[Tensor, Heads], Tensor]
    centres: Callable[[Tensor, Heads, KMeans, int], Tensor]


PROJECTION = ("projection.0.weight", "projection.3.weight")
KINDS = {  # in the order of `auto`
    "prototypes": Kind(("prototypes.weight", *PROJECTION), project, _grouped_prototypes),
    "classifier": Kind(("classifier.weight",), class_probabilities, _frequent_classes),
    "kmeans": Kind((), _unit_features, _clusters),
    "projector": Kind(PROJECTION, project, _clusters),
}
