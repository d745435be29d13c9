"""Schema of `pretrain` in params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.settings.section import (
    Count,
    Fraction,
    FractionRange,
    NonNegative,
    Photometric,
    Positive,
    PositiveFraction,
    Section,
    Sha256,
    check_micro_batch,
    one_fault,
)

QUEUE_METHODS = ("mocov2", "densecl")  # methods with a queue of keys of `queue_size`
UNTRAINED = ("none", "supervised")  # methods that take the model of `init` as it is
DENSE_METHODS = ("densecl", "slotcon")  # methods that learn from the cells of the last feature map
PerView = Annotated[
    list[Fraction],
    Field(min_length=2, max_length=2, json_schema_extra={"entries": "first view, second view"}),
    one_fault("must be [first view, second view], each >= 0 and <= 1"),
]


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


class Dense(Section):
    """Feature maps of the dense methods."""

    image_px: Annotated[int, Field(ge=16)]
    dilate: bool
    mocov2_epochs: Annotated[int, Field(ge=0)]


class DenseCL(Section):
    """Settings specific to DenseCL."""

    weight: Fraction
    warmup_epochs: NonNegative


class SlotCon(Section):
    """Settings specific to SlotCon."""

    num_prototypes: Annotated[int, Field(ge=2)]
    hidden_dim: Count
    student_temperature: Positive
    teacher_temperature: Positive
    centre_momentum: Annotated[float, Field(ge=0, lt=1)]
    grouping_weight: Fraction
    overlap: PositiveFraction
    blur_probability: PerView
    solarize_probability: PerView


class Pretrain(Section):
    """Backbone: trained from scratch, trained from a checkpoint, or used without training."""

    method: Literal["mocov2", "swav", "densecl", "slotcon", "none", "supervised"]
    init: str
    init_key: str
    init_sha256: Sha256
    epochs: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=2)]
    micro_batch: Annotated[int, Field(ge=0)]
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
    dense: Dense
    densecl: DenseCL
    slotcon: SlotCon
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
        check_micro_batch(self.micro_batch, self.batch_size)
        if self.micro_batch and self.method == "slotcon":
            raise ValueError(
                f"micro_batch: {self.micro_batch} is not possible with method: slotcon, whose predictor sees "
                "the slots of the whole batch; set it to 0"
            )
        if self.has_queue and self.queue_size % self.batch_size:
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

    @property
    def trains(self) -> bool:
        """Whether the method trains; the others use the initial model as it is."""
        return self.method not in UNTRAINED

    @property
    def view_px(self) -> int:
        """Side of the views that the method trains on."""
        return self.dense.image_px if self.method in DENSE_METHODS else self.image_px

    @property
    def first_epochs(self) -> int:
        """Epochs of MoCo v2 before those of a dense method; 0: it starts from `init`, or at random."""
        return self.dense.mocov2_epochs if self.method in DENSE_METHODS and self.epochs else 0

    @property
    def has_queue(self) -> bool:
        """Whether a phase has a queue of keys of `queue_size`."""
        return self.method in QUEUE_METHODS or self.first_epochs > 0

    def check_vit(self, arch: str) -> None:
        """Refuse a vision transformer for methods that would leave its class token untrained.

        Raises:
            ValueError: the method is a dense one.
        """
        if self.method in DENSE_METHODS:
            raise ValueError(
                f"pretrain.method: {self.method} trains the cells of a ResNet's last feature map, but "
                f"backbone.arch: {arch} has a class token, which it would not train; set backbone.arch: "
                "resnet18 or resnet50, or pretrain.method: mocov2 or swav"
            )
