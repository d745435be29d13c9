"""The four methods of pretraining, built from params.yaml and, if there is one, a published checkpoint."""

from typing import Any

from stages.backbone.checkpoint import build_backbone, describe
from stages.backbone.trunk import Trunk
from stages.checkpoints.published import Published
from stages.core.device import torch_generator
from stages.pretraining.densecl import DenseCL
from stages.pretraining.encoder import DenseEncoder, Encoder, HeadedTrunk, MultiCropEncoder, dilate
from stages.pretraining.method import Method
from stages.pretraining.moco import MoCo, choose_key_momentum, choose_queue_size
from stages.pretraining.slot_networks import SlotEncoder
from stages.pretraining.slotcon import SlotCon
from stages.pretraining.swav import SwAV
from stages.runtime.progress import say, warn
from stages.settings.schema_pretrain import DENSE_METHODS, Pretrain
from stages.settings.section import Backbone

FEW_CELLS = 7  # along a side of the last feature map; both papers of dense methods have 7


def phases(settings: Pretrain) -> list[Pretrain]:
    """What trains, one after another: MoCo v2 if a dense method is to start from it, then the method."""
    if not settings.trains:
        return []
    mocov2 = settings.model_copy(update={"method": "mocov2", "epochs": settings.first_epochs})
    return [mocov2, settings] if settings.first_epochs else [settings]


def build_method(
    settings: Pretrain,
    backbone: Backbone,
    start: Published | None,
    *,
    num_images: int,
    seed: int,
    precision: str,
) -> Method:
    """The method that `pretrain.method` names, with fresh weights from torch's generator.

    Args:
        settings: `pretrain` of params.yaml.
        backbone: architecture of the trunk.
        start: checkpoint whose trunk, and whose heads if they fit, replace the fresh weights.
        num_images: number of training images.
        seed: `seed` of params.yaml; draws the queues.
        precision: precision of the forward passes.
    """
    trunk = build_backbone(describe(backbone))
    if settings.method in DENSE_METHODS:
        _prepare_cells(trunk, settings, backbone)
    num_steps = settings.epochs * (num_images // settings.batch_size)
    if settings.method == "slotcon":
        return _slotcon(trunk, settings, start, num_images, num_steps, precision)
    if settings.method == "swav":
        return _swav(trunk, settings, start, precision)
    return _moco(trunk, settings, start, num_images, num_steps, precision, seed)


def _swav(trunk: Trunk, settings: Pretrain, start: Published | None, precision: str) -> SwAV:
    encoder = MultiCropEncoder(trunk, settings.projection_dim, head_batch_norm=settings.head_batch_norm)
    _fill(encoder, start)
    swav = SwAV(encoder, settings, precision=precision)
    if start is not None:
        say("pretrain", prototypes_of_checkpoint=start.fill_head("prototypes", swav.prototypes))
    return swav


def _moco(
    trunk: Trunk,
    settings: Pretrain,
    start: Published | None,
    num_images: int,
    num_steps: int,
    precision: str,
    seed: int,
) -> Method:
    """MoCo v2 or DenseCL."""
    queue_size = choose_queue_size(settings, num_images)
    momentum = choose_key_momentum(settings, num_steps)
    say("pretrain", images=num_images, steps=num_steps, queue_size=queue_size, key_momentum=momentum)
    how: dict[str, Any] = {"queue_size": queue_size, "key_momentum": momentum, "precision": precision}
    how["generator"] = torch_generator(seed, "pretrain", "queue")
    if settings.method == "densecl":
        cells = DenseEncoder(trunk, settings.projection_dim, head_batch_norm=settings.head_batch_norm)
        _fill(cells, start)
        return DenseCL(cells, settings, **how)
    encoder = Encoder(trunk, settings.projection_dim, head_batch_norm=settings.head_batch_norm)
    _fill(encoder, start)
    return MoCo(encoder, settings, **how)


def _fill(encoder: HeadedTrunk, start: Published | None) -> None:
    """Replace the fresh weights by those of the checkpoint: the trunk, and the head if it fits."""
    if start is not None:
        start.fill(encoder.backbone)
        say("pretrain", projection_of_checkpoint=start.fill_head("projection", encoder.head))


def _slotcon(
    trunk: Trunk,
    settings: Pretrain,
    start: Published | None,
    num_images: int,
    num_steps: int,
    precision: str,
) -> SlotCon:
    own = settings.slotcon
    encoder = SlotEncoder(trunk, own.hidden_dim, settings.projection_dim, own.num_prototypes)
    if start is not None:
        start.fill(trunk)
    momentum = choose_key_momentum(settings, num_steps)
    say("pretrain", images=num_images, steps=num_steps, prototypes=own.num_prototypes, key_momentum=momentum)
    return SlotCon(encoder, settings, teacher_momentum=momentum, precision=precision)


def _prepare_cells(trunk: Trunk, settings: Pretrain, backbone: Backbone) -> None:
    """Dilate the trunk if asked to, and say how many cells its last feature map has."""
    if settings.dense.dilate:
        dilate(trunk)
    stride = backbone.stem_stride * (4 if settings.dense.dilate else 8)
    cells = -(-settings.dense.image_px // stride)
    say("pretrain", view_px=settings.dense.image_px, cells=f"{cells} x {cells}")
    if cells < FEW_CELLS:
        dilation = "" if settings.dense.dilate else ", set pretrain.dense.dilate: true"
        warn(
            "pretrain",
            f"the last feature map has only {cells} x {cells} cells, from which method: {settings.method} "
            f"learns; raise pretrain.dense.image_px to {(FEW_CELLS - 1) * stride + 1} or more{dilation}, "
            "or lower backbone.stem_stride",
        )
