"""Settings that a data set is too small for: found before anything is trained."""

from collections.abc import Iterator
from pathlib import Path

from stages.runtime.errors import raise_faults
from stages.runtime.params import read
from stages.runtime.schema import Params

NUM_VIEWS = 6  # of the pyramid


def check_data_size(path: Path, num_images: int) -> None:
    """Hold params.yaml against the number of training images; changes nothing that a stage computes.

    Raises:
        UserError: every setting that does not fit.
    """
    raise_faults(f"{path}: {fault}" for fault in _faults(read(path), num_images))


def _faults(params: Params, num_images: int) -> Iterator[str]:
    too_many = f"is more than the {num_images} training images"
    trains = params.pretrain.method not in ("none", "supervised")
    if trains and params.pretrain.batch_size > num_images:
        yield f"pretrain.batch_size: {params.pretrain.batch_size} {too_many}; lower it, or add images"
    if params.pretrain.method == "mocov2" and params.pretrain.queue_size > num_images:
        yield (
            f"pretrain.queue_size: {params.pretrain.queue_size} {too_many}, so an image would be its own "
            "negative; half of the images is a good size"
        )
    clusters_views = params.label.centres == "kmeans" or (
        params.label.centres == "auto" and params.pretrain.method == "mocov2"
    )
    views = min(num_images * (NUM_VIEWS if params.label.fit_views == "all" else 1), params.label.sample_views)
    if clusters_views and params.global_k > views:
        yield (
            f"global_k: {params.global_k} clusters need at least as many views, but there are {views} "
            f"(label.fit_views: {params.label.fit_views}, label.sample_views: {params.label.sample_views}); "
            "lower global_k, or add images"
        )
    if params.train.batch_size > num_images:
        yield f"train.batch_size: {params.train.batch_size} {too_many}; lower it, or add images"
    pixels = _sampled_pixels(params, num_images)
    if params.pixel_k > pixels:
        yield (
            f"pixel_k: {params.pixel_k} clusters need as many pixels, but an epoch's sample has {pixels} "
            "(train.clustering.sample_images, sample_pixels); lower pixel_k, or raise them"
        )


def _sampled_pixels(params: Params, num_images: int) -> int:
    """Pixels of each view that an epoch clusters."""
    clustering, batch_size = params.train.clustering, params.train.batch_size
    in_image = (params.size_px // params.train.feature_stride) ** 2
    if clustering.kmeans == "minibatch":
        batches = min(clustering.init_batches, num_images // batch_size)
        return batches * batch_size * in_image
    images = max(batch_size, min(clustering.sample_images, num_images) // batch_size * batch_size)
    return images * min(max(1, clustering.sample_pixels // images), in_image)
