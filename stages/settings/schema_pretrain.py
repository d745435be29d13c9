"""Schema of `pretrain` in params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.settings.section import (
    Count,
    FractionRange,
    NonNegative,
    Photometric,
    Positive,
    PositiveFraction,
    Section,
    Sha256,
)


class SwAV(Section):
    """Settings specific to SwAV."""

    num_prototypes: Annotated[int, Field(ge=2)]
    temperature: Positive
    epsilon: Positive
    sinkhorn_iterations: Count
    crop_area: FractionRange
    local_crops: Annotated[int, Field(ge=0)]
    local_px: Annotated[int, Field(ge=8)]
    local_area: FractionRange
    freeze_epochs: Annotated[int, Field(ge=0)]
    queue_size: Annotated[int, Field(ge=0)]
    queue_from_epoch: Annotated[int, Field(ge=0)]


class Pretrain(Section):
    """Backbone: trained from scratch, trained from a checkpoint, or used without training."""

    method: Literal["mocov2", "swav", "none", "supervised"]
    init: str
    init_key: str
    init_sha256: Sha256
    epochs: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=2)]
    image_px: Annotated[int, Field(ge=16)]
    crop_area: FractionRange
    crop_aspect: PositiveFraction
    optimizer: Literal["sgd", "lars", "adamw"]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    lr: Positive
    weight_decay: NonNegative
    warmup_epochs: NonNegative
    key_momentum: Annotated[float, Field(ge=0, lt=1)]
    temperature: Positive
    queue_size: Annotated[int, Field(ge=0)]
    batch_negatives: bool
    projection_dim: Count
    head_batch_norm: bool
    symmetric: bool
    bn_splits: Count
    swav: SwAV
    photometric: Photometric

    @model_validator(mode="after")
    def _classes_need_a_checkpoint(self) -> "Pretrain":
        if self.method == "supervised" and not self.init:
            raise ValueError(
                "init: is empty, but method: supervised loads weights and classes from a checkpoint; "
                "set it to a checkpoint with a classifier"
            )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> "Pretrain":
        if self.method == "mocov2" and self.queue_size % self.batch_size:
            raise ValueError(
                f"queue_size: {self.queue_size} is not a multiple of batch_size {self.batch_size}; "
                "the queue stores whole batches, so set it to a multiple"
            )
        if self.method == "swav" and self.swav.queue_size % self.batch_size:
            raise ValueError(
                f"swav.queue_size: {self.swav.queue_size} is not a multiple of batch_size {self.batch_size}; "
                "the queue stores whole batches, so set it to a multiple, or to 0 for no queue"
            )
        if self.batch_size % self.bn_splits or self.batch_size // self.bn_splits < 2:
            raise ValueError(
                f"bn_splits: {self.bn_splits} does not divide batch_size {self.batch_size} into groups of "
                "at least two images"
            )
        return self
