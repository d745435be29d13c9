"""What settings need of the data set and of one another, which stages check before they begin."""

from collections.abc import Iterator
from pathlib import Path

from stages.settings.errors import raise_faults
from stages.settings.params import read
from stages.settings.schema import Params

NUM_VIEWS = 6  # of an image: those of stages/pseudo_labels/pyramid.py, as a test holds
CENTRES = {  # kinds of label.centres for which each method trains the heads; the first is that of `auto`
    "mocov2": ("kmeans", "projector"),
    "densecl": ("kmeans", "projector"),
    "swav": ("prototypes", "kmeans", "projector"),
    "slotcon": ("kmeans",),
}


def check_data_size(path: Path, num_images: int) -> None:
    """Check that params.yaml fits the number of training images; does not affect results.

    Raises:
        UserError: settings do not fit; the error lists all of them.
    """
    raise_faults(f"{path}: {fault}" for fault in _faults(read(path), num_images))


def check_heads(path: Path) -> None:
    """Check that pretraining trains the heads that `label` will need, which comes after hours of it.

    Raises:
        UserError: settings do not fit; the error lists all of them.
    """
    raise_faults(f"{path}: {fault}" for fault in _head_faults(read(path)))


def _head_faults(params: Params) -> Iterator[str]:
    pretrain = params.pretrain
    if not (pretrain.trains and pretrain.epochs):  # the heads are those of pretrain.init
        return
    centres, allowed = _centres(params), CENTRES[pretrain.method]
    if centres not in allowed:
        yield (
            f"label.centres: {centres} needs a head that pretrain.method: {pretrain.method} does not train; "
            f"set auto or {' or '.join(allowed)}"
        )
    elif centres == "prototypes" and params.global_k > (available := pretrain.swav.num_prototypes):
        yield (
            f"global_k: {params.global_k} is more than the {available} prototypes "
            "(pretrain.swav.num_prototypes); lower it, raise their number, or set label.centres: kmeans"
        )


def _faults(params: Params, num_images: int) -> Iterator[str]:
    too_many = f"is more than the {num_images} training images"
    if params.pretrain.trains and params.pretrain.batch_size > num_images:
        yield f"pretrain.batch_size: {params.pretrain.batch_size} {too_many}; lower it, or add images"
    if params.pretrain.has_queue and params.pretrain.queue_size > num_images:
        yield (
            f"pretrain.queue_size: {params.pretrain.queue_size} {too_many}, so images would be their own "
            "negatives; about half of the images is a good size"
        )
    yield from _label_faults(params, num_images)
    if params.train.batch_size > num_images:
        yield f"train.batch_size: {params.train.batch_size} {too_many}; lower it, or add images"
    pixels, keys = _first_pixels(params, num_images)
    clusters = params.train.clusters_per_view(params.pixel_k)
    if clusters > pixels:
        key = "train.clustering.num_clusters" if params.train.clustering.num_clusters else "pixel_k"
        yield (
            f"{key}: {clusters} clusters need at least as many pixels, but k-means starts from {pixels} "
            f"(train.clustering.{keys}); lower {key}, or raise these"
        )


def _label_faults(params: Params, num_images: int) -> Iterator[str]:
    label = params.label
    views = min(num_images * (NUM_VIEWS if label.fit_views == "all" else 1), label.sample_views)
    if _centres(params) in ("kmeans", "projector") and params.global_k > views:
        yield (
            f"global_k: {params.global_k} clusters need at least as many views, but there are {views} "
            f"(label.fit_views: {label.fit_views}, label.sample_views: {label.sample_views}); "
            "lower global_k, or add images"
        )


def _centres(params: Params) -> str:
    allowed = CENTRES.get(params.pretrain.method)
    return allowed[0] if params.label.centres == "auto" and allowed else params.label.centres


def _first_pixels(params: Params, num_images: int) -> tuple[int, str]:
    """Number of pixels per view that k-means of an epoch starts from, and the keys that say so."""
    clustering, batch_size = params.train.clustering, params.train.batch_size
    in_image = (params.size_px // params.train.feature_stride) ** 2
    if clustering.kmeans == "minibatch":
        first = clustering.init_batches * clustering.batches_per_update
        batches = min(first, num_images // batch_size)
        return batches * batch_size * in_image, "init_batches, batches_per_update"
    images = max(batch_size, min(clustering.sample_images, num_images) // batch_size * batch_size)
    return images * min(max(1, clustering.sample_pixels // images), in_image), "sample_images, sample_pixels"
