"""What params.yaml may say: every key, its type and its range.

One module for the whole file, so that the first stage finds a fault in the last section. It holds no
default and no number that reaches a result, so an edit here invalidates no stage.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]


def _low_first(bounds: list[float]) -> list[float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"must be [low, high], got {bounds}")
    return bounds


FractionRange = Annotated[
    list[PositiveFraction], Field(min_length=2, max_length=2), AfterValidator(_low_first)
]
Range = Annotated[list[NonNegative], Field(min_length=2, max_length=2), AfterValidator(_low_first)]


class Section(BaseModel):
    """A part of params.yaml: frozen, complete, and nothing beside what is named."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False
    )


class Backbone(Section):
    """The trunk that pretraining, embedding and segmentation share."""

    arch: Literal["resnet18", "resnet50", "vit_small", "vit_base"]
    width: Count
    stem_stride: Literal[1, 2, 4]
    patch_px: Literal[8, 14, 16]
    registers: Annotated[int, Field(ge=0)]
    layer_scale: bool

    @property
    def is_vit(self) -> bool:
        """Whether it has patches in place of a stem."""
        return self.arch.startswith("vit")

    @field_validator("stem_stride", "patch_px", mode="before")
    @classmethod
    def _no_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):  # True == 1, so the choice alone would take it
            raise PydanticCustomError("int_type", "an int")
        return value


class Demo(Section):
    """The generated data set."""

    num_train: Count
    num_val: Count


class SplitRule(Section):
    """How images of one's own are told apart."""

    by: Literal["folder", "lists", "fraction"]
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0)]


class CocoStuff(Section):
    """Which images of COCO."""

    list: Annotated[str, Field(pattern=r"^[\w-]+$")]


CityscapesFolder = Literal["train", "val", "test", "train_extra"]


class Cityscapes(Section):
    """Which folders of Cityscapes."""

    train: Annotated[list[CityscapesFolder], Field(min_length=1)]
    val: Annotated[list[Literal["train", "val"]], Field(min_length=1)]

    @model_validator(mode="after")
    def _disjoint(self) -> "Cityscapes":
        twice = sorted({name for name in self.train + self.val if (self.train + self.val).count(name) > 1})
        if twice:
            raise ValueError(f"val: names {', '.join(twice)} more than once, here or in train; name it once")
        return self


class Prepare(Section):
    """Where the images come from and how they are packed."""

    reader: Literal["demo", "folder", "cocostuff", "cityscapes"]
    path: str
    manifest_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    protocol: Literal["own", "picie", "picie_long", "stego"]
    taxonomy: Literal[
        "own", "cocostuff27", "cocostuff15", "cocostuff171", "cityscapes27", "cityscapes19", "cityscapes7"
    ]
    train_px: Annotated[int, Field(ge=16)]
    split: SplitRule
    cocostuff: CocoStuff
    cityscapes: Cityscapes
    demo: Demo

    @model_validator(mode="after")
    def _fits_the_reader(self) -> "Prepare":
        if self.reader != "demo" and not self.path:
            raise ValueError(
                f"path: is empty, but reader: {self.reader} reads from it; set it to the folder of "
                f"{'images/' if self.reader == 'folder' else 'the data set'}"
            )
        published = self.reader in ("cocostuff", "cityscapes")
        if self.taxonomy.rstrip("0123456789") != (self.reader if published else "own"):
            known = f"{self.reader}27 or another of {self.reader}" if published else "own"
            raise ValueError(f"taxonomy: {self.taxonomy} is not for reader: {self.reader}; set it to {known}")
        if self.protocol == "picie_long" and self.reader != "cityscapes":
            raise ValueError("protocol: picie_long is for reader: cityscapes alone; set it to picie")
        return self


class Photometric(Section):
    """Random changes of colour and sharpness, drawn for each view on its own."""

    jitter_probability: Fraction
    jitter_together: bool
    brightness: NonNegative
    contrast: NonNegative
    saturation: NonNegative
    hue: Annotated[float, Field(ge=0, le=0.5)]
    gray_probability: Fraction
    blur_probability: Fraction
    blur_sigma_px: Range
    blur_reference_px: Count


class SwAV(Section):
    """What SwAV has of its own."""

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
    """Where the backbone comes from: trained here, continued from a checkpoint, or taken as it is."""

    method: Literal["mocov2", "swav", "none", "supervised"]
    init: str
    init_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    epochs: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=2)]
    image_px: Annotated[int, Field(ge=16)]
    crop_area: FractionRange
    optimizer: Literal["sgd", "lars", "adamw"]
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
                "init: is empty, but method: supervised takes weights and classes from a checkpoint; "
                "set it to one with a classifier"
            )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> "Pretrain":
        if self.method == "mocov2" and self.queue_size % self.batch_size:
            raise ValueError(
                f"queue_size: {self.queue_size} is not a multiple of batch_size {self.batch_size}; "
                "the queue takes whole batches, so choose one that is"
            )
        if self.method == "swav" and self.swav.queue_size % self.batch_size:
            raise ValueError(
                f"swav.queue_size: {self.swav.queue_size} is not a multiple of batch_size {self.batch_size}; "
                "the queue takes whole batches, so choose one that is, or 0 for none"
            )
        if self.batch_size % self.bn_splits or self.batch_size // self.bn_splits < 2:
            raise ValueError(
                f"bn_splits: {self.bn_splits} does not divide batch_size {self.batch_size} into groups of "
                "two or more"
            )
        return self


class Embed(Section):
    """Global features of the pyramid views."""

    batch_size: Count
    centre_ratio: PositiveFraction


class WeakLabels(Section):
    """From where on pseudo-labels are called weak."""

    stability_below: Fraction
    position_above: Fraction
    order_above: Fraction
    used_below: Fraction


class Label(Section):
    """Pseudo-labels of whole views."""

    centres: Literal["auto", "kmeans", "prototypes", "classifier", "projector"]
    fit_views: Literal["whole", "all"]
    sample_views: Count
    iterations: Count
    restarts: Count
    weak: WeakLabels


class SelectViews(Section):
    """Active selection."""

    pool: Literal["pyramid", "whole", "parts"]
    scope: Literal["global", "per_cluster", "per_view"]


class PixelClustering(Section):
    """The k-means at the start of each epoch, and the assignments that the epoch follows."""

    schedule: Literal["frozen_copy", "multi_pass"]
    kmeans: Literal["sample", "minibatch"]
    init_batches: Count
    sample_images: Count
    sample_pixels: Count
    iterations: Count
    restarts: Count
    unit_centroids: bool
    assign: Literal["dot", "euclidean"]
    assign_batch_norm: Literal["batch", "running"]
    collapse_below: Fraction


class PixelLoss(Section):
    """Within-view and cross-view terms."""

    metric: Literal["dot", "euclidean"]
    temperature: Positive
    balance: Literal["none", "frequency", "inverse"]
    cross_weight: Fraction


class ImageLoss(Section):
    """Guidance by the pseudo-labels of kept views."""

    weight: NonNegative
    warmup_epochs: NonNegative
    views: Literal["sample", "all", "pooled"]
    view_px: Annotated[int, Field(ge=16)]
    head: Literal["classical", "modified", "relu_gap_fc", "mlp"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    balance: Literal["none", "frequency", "inverse"]
    held_out: Annotated[float, Field(ge=0, lt=1)]


class Context(Section):
    """Context-aware embedding."""

    similarity: Literal["none", "cnn", "raw", "both"]
    combine: Literal["product", "sum", "log_sum"]
    norm: Literal["l1", "softmax", "count", "none"]
    temperature: Positive
    stride: Count
    color: Literal["rgb", "lab"]
    image: Literal["view", "clean"]
    residual: Literal["add", "concat", "none"]
    start: Literal["identity", "random"]
    learn_kernels: bool
    lr_factor: Positive
    appearance_weight: Positive
    proximity_weight: Positive
    position_bandwidth: Positive
    color_bandwidth: Positive
    proximity_bandwidth: Positive


class Train(Section):
    """Pixel-cluster training."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    lr: Positive
    weight_decay: NonNegative
    freeze: Literal["none", "batch_norm", "backbone"]
    fpn_dim: Count
    feature_stride: Count
    crop_side: FractionRange
    flip_probability: Fraction
    crop_first: bool
    photometric: Photometric
    clustering: PixelClustering
    pixel_loss: PixelLoss
    image_loss: ImageLoss
    context: Context

    @model_validator(mode="after")
    def _parts_fit(self) -> "Train":
        if self.pixel_loss.metric == "euclidean" and (
            self.clustering.unit_centroids or self.clustering.assign != "euclidean"
        ):
            raise ValueError(
                "pixel_loss.metric: euclidean compares features of any length, so it needs "
                "clustering.unit_centroids: false and clustering.assign: euclidean"
            )
        if self.context.combine == "log_sum" and self.context.norm != "softmax":
            raise ValueError(
                f"context.combine: log_sum is the exponent of a softmax, and needs context.norm: softmax, "
                f"got {self.context.norm!r}"
            )
        if self.context.residual == "none" and self.context.start == "identity":
            raise ValueError(
                "context.start: identity adds nothing to the feature map, and with context.residual: none "
                "nothing else is there; set context.start: random"
            )
        return self


class Cluster(Section):
    """The final k-means of pixel features."""

    centroids: Literal["fresh", "first_view", "second_view"]
    kmeans: Literal["sample", "minibatch"]
    batch_size: Count
    init_batches: Count
    sample_images: Count
    sample_pixels: Count
    iterations: Count
    restarts: Count
    unit_centroids: bool
    batch_norm: Literal["batch", "running"]


class Predict(Section):
    """Class scores of the validation images."""

    batch_size: Count


class Refine(Section):
    """Dense CRF."""

    temperature: Positive
    iterations: Count
    smoothness_weight: NonNegative
    smoothness_px: Positive
    appearance_weight: NonNegative
    appearance_px: Positive
    appearance_color: Positive


class Evaluate(Section):
    """Scores and the baseline they stand beside."""

    baseline_restarts: Count


class Report(Section):
    """The page to look at."""

    num_images: Count
    num_clusters: Count
    views_per_cluster: Count


class Runtime(Section):
    """Settings that change no result; no stage depends on them."""

    num_workers: Annotated[int, Field(ge=0)]
    nproc: Annotated[int, Field(ge=0)]
    checkpoint_seconds: NonNegative


class Params(Section):
    """The whole of params.yaml, in the order of the flow."""

    preset: str
    compat: Literal["paper", "picie"]
    seed: Annotated[int, Field(ge=0)]
    size_px: Annotated[int, Field(ge=16)]
    global_k: Annotated[int, Field(ge=2)]
    pixel_k: Annotated[int, Field(ge=2, le=255)]
    select_ratio: PositiveFraction
    crop_ratio: Annotated[float, Field(gt=0, lt=1)]
    precision: Literal["float32", "bfloat16"]
    compile: bool
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    backbone: Backbone
    prepare: Prepare
    pretrain: Pretrain
    embed: Embed
    label: Label
    select_views: SelectViews
    train: Train
    cluster: Cluster
    predict: Predict
    refine: Refine
    evaluate: Evaluate
    report: Report
    runtime: Runtime

    @model_validator(mode="after")
    def _strides_divide(self) -> "Params":
        if self.backbone.is_vit:
            self._check_patches()
        else:
            self._check_stem()
        feature, context = self.train.feature_stride, self.train.context.stride
        for key, side in (
            ("size_px", self.size_px),
            ("train.image_loss.view_px", self.train.image_loss.view_px),
        ):
            if context % feature or side % context:
                raise ValueError(
                    f"train.context.stride: must be a multiple of train.feature_stride {feature} "
                    f"and divide {key} {side}, got {context}"
                )
        return self

    def _check_stem(self) -> None:
        stem, feature = self.backbone.stem_stride, self.train.feature_stride
        if self.size_px % (8 * stem):
            raise ValueError(
                f"size_px: {self.size_px} is not a multiple of {8 * stem}, the deepest stride of a trunk "
                f"with backbone.stem_stride {stem}"
            )
        if feature not in (stem, 2 * stem):
            raise ValueError(
                f"train.feature_stride: must be backbone.stem_stride {stem} or twice that, got {feature}"
            )

    def _check_patches(self) -> None:
        patch, feature = self.backbone.patch_px, self.train.feature_stride
        if patch % feature:
            raise ValueError(f"train.feature_stride: must divide backbone.patch_px {patch}, got {feature}")
