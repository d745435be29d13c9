"""The files of a trained segmenter: its network, and its final clusters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from stages.backbone.checkpoint import build_backbone, describe
from stages.core.artefacts import MAKE_AGAIN
from stages.core.hashes import check_sha256, file_sha256, fingerprint
from stages.core.repository import in_repository
from stages.core.tensors import read_tensors, write_tensors
from stages.segmenter.network import Segmenter
from stages.settings.errors import UserError
from stages.settings.schema_train import Cluster, Context, Train
from stages.settings.section import Backbone

BATCH_NORM = "batch_norm."  # prefix in the file of `cluster`
REMEDY = "run `dvc repro cluster`"
START_REMEDY = "set train.init to the segmenter.safetensors of an earlier run, or to ''"
PREVIOUS_REMEDY = "copy both files of one run there (`make pin WARM=1` does), or set cluster.previous: ''"
CLUSTERS = {view: f"clusters.{view}" for view in ("first_view", "second_view")}  # names in the file


def save_segmenter(
    path: Path, segmenter: Segmenter, centroids: Sequence[Float[Tensor, "K D"]], about: dict[str, Any]
) -> None:
    """Write the weights, and the centroids of both views in the last epoch.

    The image head is only used in training and is not saved.
    """
    weights = {
        name: value for name, value in segmenter.state_dict().items() if not name.startswith("image_head.")
    }
    write_tensors(path, {**weights, **dict(zip(CLUSTERS.values(), centroids, strict=True))}, about)


def describe_segmenter(backbone: Backbone, settings: Train, size_px: int) -> dict[str, Any]:
    """Metadata needed to rebuild the network from the file."""
    return {
        "backbone": describe(backbone),
        "fpn_dim": settings.fpn_dim,
        "feature_stride": settings.feature_stride,
        "context": settings.context.model_dump(),
        "metric": settings.pixel_loss.metric,
        "freeze": settings.freeze,
        "size_px": size_px,
    }


def load_segmenter(path: Path, remedy: str = "") -> tuple[Segmenter, dict[str, Any]]:
    """Read a network in evaluation mode, and its metadata.

    Args:
        path: file of `train`.
        remedy: what to do if it is missing or another file; empty if a stage makes it.

    Raises:
        UserError: the file is not a segmenter of this project.
    """
    tensors, about = read_tensors(path, remedy=remedy)
    weights = {name: value for name, value in tensors.items() if name not in CLUSTERS.values()}
    try:
        segmenter = Segmenter(
            build_backbone(about["backbone"]),
            fpn_dim=about["fpn_dim"],
            feature_stride=about["feature_stride"],
            context=Context(**about["context"]),
            metric=about["metric"],
            freeze=about["freeze"],
        )
        segmenter.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot be loaded as a segmenter by this version ({error}); {remedy or MAKE_AGAIN}"
        ) from error
    return segmenter.eval(), about


def load_trained_clusters(path: Path) -> dict[str, Float[Tensor, "K D"]]:
    """The centroids of the last training epoch, `first_view` and `second_view`.

    Raises:
        UserError: the file is not a segmenter of this version.
    """
    tensors, _ = read_tensors(path, *CLUSTERS.values())
    return {view: tensors[name] for view, name in CLUSTERS.items()}


def save_final_clusters(
    path: Path,
    centroids: Float[Tensor, "K D"],
    segmenter: Segmenter | None,
    about: Mapping[str, Any],
    *,
    made_for: str,
) -> None:
    """Write the centroids of `cluster` and, if given, the batch-norm statistics of the network.

    Args:
        path: output file.
        centroids: of the classes.
        segmenter: network whose statistics are written.
        about: metadata on earlier clusters whose numbers these keep; empty if there are none.
        made_for: SHA-256 of the file of the segmenter whose features were clustered.
    """
    statistics = {} if segmenter is None else dict(segmenter.named_buffers())
    tensors = {"centroids": centroids, **{BATCH_NORM + name: value for name, value in statistics.items()}}
    write_tensors(path, tensors, {"pixel_k": len(centroids), "segmenter": made_for, **about})


@dataclass(frozen=True)
class Earlier:
    """Segmenter and clusters of an earlier run, whose numbers new clusters keep.

    Attributes:
        segmenter: in evaluation mode, with the batch-norm statistics of its clusters.
        centroids: its clusters.
        size_px: side of its input.
        fingerprints: of its clusters, then of those before, whose numbers they keep.
        void: for each of those before, the numbers that have another meaning in its clusters.
        files: that were read.
    """

    segmenter: Segmenter
    centroids: Float[Tensor, "J D"]
    size_px: int
    fingerprints: tuple[str, ...]
    void: Mapping[str, Sequence[int]]
    files: tuple[Path, Path]

    def about_continuing(self, new: Sequence[int]) -> dict[str, Any]:
        """Metadata of clusters that continue these, except for the numbers `new`, whose names are void."""
        void = {one: sorted({*self.void.get(one, ()), *new}) for one in self.fingerprints}
        return {"continues": list(self.fingerprints), "void": void}


def open_earlier(settings: Cluster) -> Earlier | None:
    """Read the segmenter and the clusters in the folder `cluster.previous`; None if it is not set.

    Raises:
        UserError: a file is missing, has another hash than `previous_sha256`, or cannot be read; the files
            are not of one run.
    """
    if not settings.previous:
        return None
    folder = in_repository(settings.previous)
    files = folder / "segmenter.safetensors", folder / "pixel_centroids.safetensors"
    check_sha256(files[1], settings.previous_sha256, "cluster.previous", PREVIOUS_REMEDY)
    segmenter, about = load_segmenter(files[0], PREVIOUS_REMEDY)
    centroids = load_final_clusters(files[1], segmenter, file_sha256(files[0]), PREVIOUS_REMEDY)
    _, before = read_tensors(files[1])
    fingerprints = fingerprint(files[1]), *before.get("continues", [])
    return Earlier(segmenter, centroids, about["size_px"], fingerprints, before.get("void", {}), files)


def start_from(path: Path, segmenter: Segmenter, pinned: str) -> dict[str, Any]:
    """Load the weights of an earlier segmenter that fit the network; all others keep their values.

    The backbone always comes from `pretrain`, which may have learned from photographs that were added; its
    own warm start is `pretrain.init`.

    Args:
        path: segmenter.safetensors of an earlier run.
        segmenter: network to fill; its image head is never in the file.
        pinned: value of `train.init_sha256`.

    Returns:
        The number of weights that were taken; the names of those of the network and of those of the file,
        but for the backbone, that were not; where the backbone is from; the hash of the file.

    Raises:
        UserError: the file has another hash, cannot be read, or has no weight that fits.
    """
    sha256 = check_sha256(path, pinned, "train.init", START_REMEDY)
    tensors, _ = read_tensors(path, remedy=START_REMEDY)
    found = {
        name: value
        for name, value in tensors.items()
        if name not in CLUSTERS.values() and not name.startswith("backbone.")
    }
    own = segmenter.state_dict()
    fits = {name: value for name, value in found.items() if name in own and own[name].shape == value.shape}
    if not fits:
        raise UserError(f"{path}: has no weight that fits, besides a backbone; {START_REMEDY}")
    segmenter.load_state_dict({**own, **fits})
    return {
        "matched": len(fits),
        "not_started": [name for name in own if name not in fits and not name.startswith("backbone.")],
        "not_taken": [name for name in found if name not in fits],
        "backbone": "from pretrain",
        "sha256": sha256,
    }


def check_made_for(path: Path, about: Mapping[str, Any], sha256: str, remedy: str = REMEDY) -> None:
    """Check that clusters belong to a segmenter: with another one, masks would be wrong under right names.

    Args:
        path: file of `cluster`.
        about: its metadata.
        sha256: of the file of the segmenter.
        remedy: what to do if they do not.

    Raises:
        UserError: the clusters were made for another segmenter, or do not say for which one.
    """
    if about.get("segmenter") != sha256:
        raise UserError(
            f"{path}: the clusters were made for another segmenter (SHA-256 "
            f"{about.get('segmenter', 'unknown')}) than this one ({sha256}); {remedy}"
        )


def load_final_clusters(
    path: Path, segmenter: Segmenter, sha256: str, remedy: str = ""
) -> Float[Tensor, "K D"]:
    """Read the centroids of `cluster`; batch-norm statistics in the file replace those of the network.

    Args:
        path: file of `cluster`.
        segmenter: network that it was made for.
        sha256: of the file of that network.
        remedy: what to do if it is missing or was made for another one; empty if a stage makes it.

    Raises:
        UserError: the file was made for another network, or does not fit it.
    """
    tensors, about = read_tensors(path, "centroids", remedy=remedy)
    check_made_for(path, about, sha256, remedy or REMEDY)
    centroids = tensors.pop("centroids")
    if centroids.shape[1] != segmenter.decoder.dim:
        raise UserError(
            f"{path}: centroids have {centroids.shape[1]} features, but the segmenter computes "
            f"{segmenter.decoder.dim}; run `dvc repro cluster`"
        )
    statistics = {name.removeprefix(BATCH_NORM): value for name, value in tensors.items()}
    try:
        unknown = segmenter.load_state_dict(statistics, strict=False).unexpected_keys
    except RuntimeError as error:
        raise UserError(f"{path}: batch-norm statistics of another network ({error}); {REMEDY}") from error
    if unknown:
        raise UserError(f"{path}: the segmenter has no {unknown[0]}; {REMEDY}")
    return centroids
