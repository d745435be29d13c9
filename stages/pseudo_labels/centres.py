"""Where pseudo-labels of whole views come from (4.2.1): k-means, SwAV's prototypes, or a classifier.

Each is a space that view features are brought to, and unit centres in it; a view belongs to the centre of
the highest cosine.

kmeans      unit features; the centres are clusters of them.
projector   embeddings of the projection head, clustered likewise (A.1, where 4.2.1 says features).
prototypes  embeddings of the projection head; the centres are the prototypes, grouped to K.
classifier  probabilities of the classes; the centres are the K classes that are most often the first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stages.clustering.kmeans import CHUNK_POINTS, KMeans, assign
from stages.core.tensors import read_tensors
from stages.settings.errors import UserError


def read_heads(path: Path) -> dict[str, Tensor]:
    """The heads that lie beside a trunk of this project.

    Raises:
        UserError: the file is no safetensors file of this project.
    """
    tensors, about = read_tensors(path)
    return {name: tensors[name] for name in about.get("heads", ())}


def project(feature: Float[Tensor, "N C"], heads: Mapping[str, Tensor]) -> Float[Tensor, "N D"]:
    """Unit embeddings: the projection head in evaluation mode."""
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
    """What a supervised model says of a feature."""
    return F.linear(feature, heads["classifier.weight"], heads.get("classifier.bias")).softmax(1)


Heads = Mapping[str, Tensor]  # of the pretrained model


def choose_centres(asked: str, heads: Heads) -> str:
    """`asked`, or with `auto` the first that the heads allow: prototypes, classifier, kmeans.

    Raises:
        UserError: the heads of the pretrained model do not allow what is asked for.
    """
    allowed = [name for name, kind in KINDS.items() if set(kind.needs) <= set(heads)]
    if asked == "auto":
        return allowed[0]
    if asked not in allowed:
        raise UserError(
            f"params.yaml: label.centres: {asked} needs a pretrained model with "
            f"{', '.join(KINDS[asked].needs)}, but this one supports only {', '.join(allowed)}; set one of "
            "these or auto, or choose another pretrain.init"
        )
    return asked


class Space:
    """Where views and centres of one kind are compared.

    Args:
        name: of one of the kinds.
        heads: of the pretrained model.
        device: where features are brought to the space.
    """

    def __init__(self, name: str, heads: Heads, device: torch.device) -> None:
        self._kind, self._device = KINDS[name], device
        self._heads = {name: heads[name].to(device) for name in heads}

    @torch.no_grad()
    def points(self, features: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N D"]:
        """Features of views, which may be a memory map, in this space."""
        return np.concatenate([self._bring(features[rows]) for rows in _parts(len(features))])

    def centres(
        self, points: Float[np.ndarray, "N D"], kmeans: KMeans, *, seed: int
    ) -> Float[np.ndarray, "K D"]:
        """K unit centres.

        Args:
            points: the views that decide, in this space.
            kmeans: K is its own, whatever the kind.
            seed: of its starting points.

        Raises:
            UserError: there are fewer points, prototypes or classes than clusters.
        """
        return self._kind.centres(points, self._heads, kmeans, seed)

    def assign(
        self, features: Float[np.ndarray, "N C"], runs: Sequence[Float[np.ndarray, "K D"]]
    ) -> list[tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]]:
        """The centre of each view and its cosine, for each of several sets of centres; in bounded memory.

        Raises:
            UserError: a feature is not finite.
        """
        label = np.empty((len(runs), len(features)), dtype=np.int64)
        score = np.empty((len(runs), len(features)), dtype=np.float32)
        for rows in _parts(len(features)):
            points = self.points(features[rows])
            for run, centroids in enumerate(runs):
                label[run, rows], score[run, rows] = assign(points, centroids)
        if not np.isfinite(score).all():
            raise UserError("label: some view features are not finite; the network of `pretrain` has diverged")
        return list(zip(label, score, strict=True))

    def _bring(self, features: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N D"]:
        feature = torch.from_numpy(np.array(features)).to(self._device)
        return self._kind.bring(feature, self._heads).cpu().numpy()


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, CHUNK_POINTS):
        yield slice(start, start + CHUNK_POINTS)


def _unit_features(feature: Float[Tensor, "N C"], _: Heads) -> Float[Tensor, "N C"]:
    return F.normalize(feature, dim=1)


def _clusters(
    points: Float[np.ndarray, "N D"], _: Heads, kmeans: KMeans, seed: int
) -> Float[np.ndarray, "K D"]:
    return kmeans.fit(points, seed=seed)


def _grouped_prototypes(
    _: Float[np.ndarray, "N D"], heads: Heads, kmeans: KMeans, seed: int
) -> Float[np.ndarray, "K D"]:
    prototypes = F.normalize(heads["prototypes.weight"].float(), dim=1).cpu().numpy()
    _check_enough(len(prototypes), kmeans.num_clusters, "prototypes")
    return kmeans.fit(prototypes, seed=seed)


def _frequent_classes(
    probability: Float[np.ndarray, "N C"], _: Heads, kmeans: KMeans, __: int
) -> Float[np.ndarray, "K C"]:
    """A unit vector for each of the classes that most views belong to, by class; ties to the lower one."""
    num_classes = probability.shape[1]
    _check_enough(num_classes, kmeans.num_clusters, "classes of the classifier")
    counts = np.bincount(probability.argmax(1), minlength=num_classes)
    frequent = np.sort(np.argsort(-counts, kind="stable")[: kmeans.num_clusters])
    return np.eye(num_classes, dtype=np.float32)[frequent]


def _check_enough(available: int, num_clusters: int, what: str) -> None:
    if available < num_clusters:
        raise UserError(
            f"params.yaml: global_k: {num_clusters} is more than the {available} {what}; lower it or set "
            "label.centres: kmeans"
        )


class Kind(NamedTuple):
    """Heads that a kind needs, what brings features to its space, and what finds its centres there."""

    needs: tuple[str, ...]
    bring: Callable[[Tensor, Heads], Tensor]
    centres: Callable[[np.ndarray, Heads, KMeans, int], np.ndarray]


PROJECTION = ("projection.0.weight", "projection.3.weight")
KINDS = {  # in the order of `auto`
    "prototypes": Kind(("prototypes.weight", *PROJECTION), project, _grouped_prototypes),
    "classifier": Kind(("classifier.weight",), class_probabilities, _frequent_classes),
    "kmeans": Kind((), _unit_features, _clusters),
    "projector": Kind(PROJECTION, project, _clusters),
}
