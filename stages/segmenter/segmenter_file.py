"""The files of a trained segmenter: its network, and its final clusters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from stages.backbone.checkpoint import build_backbone, describe
from stages.core.tensors import read_tensors, write_tensors
from stages.segmenter.network import Segmenter
from stages.settings.errors import UserError
from stages.settings.schema_train import Context, Train
from stages.settings.section import Backbone

BATCH_NORM = "batch_norm."  # prefix in the file of `cluster`
REMEDY = "run `dvc repro cluster`"
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


def load_segmenter(path: Path) -> tuple[Segmenter, dict[str, Any]]:
    """Read a network in evaluation mode, and its metadata.

    Raises:
        UserError: the file is not a segmenter of this project.
    """
    tensors, about = read_tensors(path)
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
        raise UserError(f"{path}: cannot be loaded as a segmenter by this version ({error})") from error
    return segmenter.eval(), about


def load_trained_clusters(path: Path) -> dict[str, Float[Tensor, "K D"]]:
    """The centroids of the last training epoch, `first_view` and `second_view`.

    Raises:
        UserError: the file is not a segmenter of this version.
    """
    tensors, _ = read_tensors(path, *CLUSTERS.values())
    return {view: tensors[name] for view, name in CLUSTERS.items()}


def save_final_clusters(path: Path, centroids: Float[Tensor, "K D"], segmenter: Segmenter | None) -> None:
    """Write the centroids of `cluster` and, if given, the batch-norm statistics of the network."""
    statistics = {} if segmenter is None else dict(segmenter.named_buffers())
    tensors = {"centroids": centroids, **{BATCH_NORM + name: value for name, value in statistics.items()}}
    write_tensors(path, tensors, {"pixel_k": len(centroids)})


def load_final_clusters(path: Path, segmenter: Segmenter) -> Float[Tensor, "K D"]:
    """Read the centroids of `cluster`; batch-norm statistics in the file replace those of the network.

    Raises:
        UserError: the file does not fit the network.
    """
    tensors, _ = read_tensors(path, "centroids")
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
