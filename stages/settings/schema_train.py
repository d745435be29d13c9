"""Schema of `train` and `cluster` in params.yaml."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.settings.section import (
    Count,
    Fraction,
    FractionRange,
    NonNegative,
    Photometric,
    Positive,
    Section,
    Sha256,
    check_micro_batch,
    low_first,
    one_fault,
)

# Similarity of a pixel z and a centroid mu: z . mu, or minus their squared distance.
Metric = Literal["dot", "euclidean"]


class PixelClustering(Section):
    """k-means at the start of each epoch and the cluster assignments used as targets."""

    num_clusters: Annotated[int, Field(ge=0, le=2_000)]  # figures of health count pairs of clusters
    kmeans: Literal["sample", "minibatch"]
    init_batches: Count
    batches_per_update: Count
    sample_images: Count
    sample_pixels: Count
    iterations: Count
    restarts: Count
    unit_centroids: bool
    assign: Metric
    assign_batch_norm: Literal["batch", "running"]
    collapse_below: Fraction

    @model_validator(mode="after")
    def _clusters_differ(self) -> "PixelClustering":
        if self.num_clusters == 1:
            raise ValueError("num_clusters: 1 cluster separates nothing; set at least 2, or 0 for pixel_k")
        return self


class PixelLoss(Section):
    """Within-view and cross-view loss."""

    metric: Metric
    temperature: Positive
    balance: Literal["none", "frequency", "inverse"]
    cross_weight: Fraction


class ImageLoss(Section):
    """Guidance loss on the pseudo-labels of the kept views."""

    weight: Annotated[NonNegative | Literal["auto"], one_fault("must be auto or a number >= 0")]
    warmup_epochs: NonNegative
    views: Literal["sample", "all", "pooled"]
    view_px: Annotated[int, Field(ge=16)]
    head: Literal["classical", "modified", "relu_gap_fc", "mlp"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    balance: Literal["none", "frequency", "inverse"]
    held_out: Annotated[float, Field(ge=0, lt=1)]


class Context(Section):
    """Context module (context-aware embedding)."""

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
    kernel_bounds: Annotated[
        list[Positive],
        Field(min_length=2, max_length=2),
        AfterValidator(low_first),
        one_fault("must be [low, high], each > 0"),
    ]
    appearance_weight: Positive
    proximity_weight: Positive
    position_bandwidth: Positive
    color_bandwidth: Positive
    proximity_bandwidth: Positive

    @model_validator(mode="after")
    def _starts_within_bounds(self) -> "Context":
        low, high = self.kernel_bounds
        for name, value in self:
            if name.endswith(("_weight", "_bandwidth")) and not low <= value <= high:
                raise ValueError(f"{name}: must lie within kernel_bounds [{low}, {high}], got {value}")
        if self.appearance_weight == self.proximity_weight in (low, high):
            raise ValueError(
                f"appearance_weight: is {self.appearance_weight} like proximity_weight, a bound of "
                "kernel_bounds, so their ratio could not be learned; choose weights between the bounds"
            )
        return self


class Train(Section):
    """Pixel-cluster training."""

    init: str
    init_sha256: Sha256
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    micro_batch: Annotated[int, Field(ge=0)]
    lr: Positive
    weight_decay: NonNegative
    freeze: Literal["none", "batch_norm", "backbone"]
    fpn_dim: Count
    feature_stride: Count
    crop_side: FractionRange
    flip_probability: Fraction
    crop_first: bool
    color_views: Literal["both", "second"]
    photometric: Photometric
    clustering: PixelClustering
    pixel_loss: PixelLoss
    image_loss: ImageLoss
    context: Context

    def clusters_per_view(self, pixel_k: int) -> int:
        """Number of pixel clusters of each view while training."""
        return self.clustering.num_clusters or pixel_k

    @model_validator(mode="after")
    def _parts_fit(self) -> "Train":
        check_micro_batch(self.micro_batch, self.batch_size)
        if self.pixel_loss.metric == "euclidean" and (
            self.clustering.unit_centroids or self.clustering.assign != "euclidean"
        ):
            raise ValueError(
                "pixel_loss.metric: euclidean uses unnormalized features, so it requires "
                "clustering.unit_centroids: false and clustering.assign: euclidean"
            )
        if self.context.combine == "log_sum" and self.context.norm != "softmax":
            raise ValueError(
                f"context.combine: log_sum computes logits, so it requires context.norm: softmax, "
                f"got {self.context.norm!r}"
            )
        if self.context.residual == "none" and self.context.start == "identity":
            raise ValueError(
                "context.start: identity starts with a zero output, which leaves no features with "
                "context.residual: none; set context.start: random"
            )
        return self


class Cluster(Section):
    """Final k-means of the pixel features."""

    centroids: Literal["fresh", "first_view", "second_view"]
    kmeans: Literal["sample", "minibatch"]
    batch_size: Count
    init_batches: Count
    sample_images: Count
    sample_pixels: Count
    iterations: Count
    restarts: Count
    unit_centroids: bool
    batch_norm: Literal["batch", "running", "fresh"]
    previous: str
    previous_sha256: Sha256

    @model_validator(mode="after")
    def _batches_have_statistics(self) -> "Cluster":
        for key in ("batch_size", "sample_images"):
            if self.batch_norm == "batch" and getattr(self, key) == 1:
                raise ValueError(f"{key}: must be 2 or more with batch_norm: batch, got 1")
        return self
