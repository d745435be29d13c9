"""Schema of params.yaml: every key with its type and range.

It describes the whole file, so the first stage reports faults in the last section. Editing it runs no stage.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.settings.schema_prepare import Prepare
from stages.settings.schema_pretrain import Pretrain
from stages.settings.schema_train import Cluster, Train
from stages.settings.section import (
    Backbone,
    Count,
    Device,
    Fraction,
    NonNegative,
    Positive,
    PositiveFraction,
    Runtime,
    Section,
)


class Embed(Section):
    """Global features of the pyramid views."""

    batch_size: Count
    image_px: Annotated[int, Field(ge=16)]
    centre_ratio: PositiveFraction


class WeakLabels(Section):
    """Thresholds of the warnings about weak pseudo-labels."""

    stability_below: Fraction
    position_above: Fraction
    order_above: Fraction
    used_below: Fraction


class Label(Section):
    """Pseudo-labels of the pyramid views."""

    centres: Literal["auto", "kmeans", "prototypes", "classifier", "projector"]
    fit_views: Literal["whole", "all"]
    sample_views: Count
    iterations: Count
    restarts: Count
    weak: WeakLabels


class SelectViews(Section):
    """Active selection of views."""

    pool: Literal["pyramid", "whole", "parts"]
    scope: Literal["global", "per_cluster", "per_view"]


class Predict(Section):
    """Cluster scores of the validation images."""

    batch_size: Count
    mirror: bool
    unit_features: bool


class Refine(Section):
    """Dense CRF."""

    backend: Literal["auto", "cpu", "cuda", "fused", "none"]
    temperature: Positive
    iterations: Count
    smoothness_weight: NonNegative
    smoothness_px: Positive
    appearance_weight: NonNegative
    appearance_px: Positive
    appearance_color: Positive


class Evaluate(Section):
    """Evaluation and its color-and-position baseline."""

    baseline_images: Count
    baseline_grid: Count
    baseline_iterations: Count
    baseline_restarts: Count


class Report(Section):
    """How much the report page shows, and in how many files."""

    num_images: Count
    regions_per_cluster: Count
    num_clusters: Count
    views_per_cluster: Count
    single_file: bool


class Params(Section):
    """The whole of params.yaml, in pipeline order."""

    preset: str
    seed: Annotated[int, Field(ge=0)]
    size_px: Annotated[int, Field(ge=16)]
    global_k: Annotated[int, Field(ge=2)]
    pixel_k: Annotated[int, Field(ge=2, le=255)]
    select_ratio: PositiveFraction
    crop_ratio: Annotated[float, Field(gt=0, lt=1)]
    precision: Literal["float32", "tf32", "bfloat16"]
    deterministic: bool
    compile: bool
    device: Device
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

    @model_validator(mode="after")
    def _metric_fits(self) -> "Params":
        why = "with train.pixel_loss.metric: euclidean, where features keep their length"
        if self.train.pixel_loss.metric == "euclidean" and self.cluster.unit_centroids:
            raise ValueError(f"cluster.unit_centroids: must be false {why}")
        if self.train.pixel_loss.metric == "euclidean" and not self.predict.unit_features:
            raise ValueError(f"predict.unit_features: must be true {why}")
        return self

    @model_validator(mode="after")
    def _clusters_fit(self) -> "Params":
        trained = self.train.clusters_per_view(self.pixel_k)
        if self.cluster.centroids != "fresh" and trained != self.pixel_k:
            raise ValueError(
                f"cluster.centroids: {self.cluster.centroids} takes the {trained} clusters of "
                f"train.clustering.num_clusters, but pixel_k is {self.pixel_k}; set both to one "
                "value, or cluster.centroids: fresh"
            )
        return self

    def _check_stem(self) -> None:
        stem, feature = self.backbone.stem_stride, self.train.feature_stride
        if (width := self.backbone.width) < (least := Backbone.LEAST_WIDTH):
            raise ValueError(f"backbone.width: a ResNet needs at least {least} channels, got {width}")
        if self.size_px % (8 * stem):
            raise ValueError(
                f"size_px: {self.size_px} is not a multiple of {8 * stem}, the total stride of a trunk "
                f"with backbone.stem_stride {stem}"
            )
        if feature not in (stem, 2 * stem):
            raise ValueError(
                f"train.feature_stride: must be backbone.stem_stride {stem} or twice that, got {feature}"
            )

    def _check_patches(self) -> None:
        self.pretrain.check_vit(self.backbone.arch)
        patch, feature = self.backbone.patch_px, self.train.feature_stride
        if patch % feature:
            raise ValueError(f"train.feature_stride: must divide backbone.patch_px {patch}, got {feature}")
