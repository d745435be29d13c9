"""Reads params.yaml like DVC, validates the whole file, and returns the requested keys."""

import difflib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stages.settings.errors import UserError, raise_faults
from stages.settings.schema import Params
from stages.settings.yaml_text import parsed

TYPES = {
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "bool_type": "bool",
    "string_type": "string",
    "list_type": "list",
    "model_type": "section",
    "model_attributes_type": "section",
}


def read(path: Path) -> Params:
    """Read and validate all of params.yaml.

    Raises:
        UserError: the file is invalid; the error lists every fault with its dotted key.
    """
    try:
        raw = _parsed(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; create it with `make preset NAME=demo`") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); pass a settings file") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, got {type(raw).__name__}")
    try:
        return validated(raw)
    except UserError as error:
        raise UserError(f"{path}:", *(f"  {fault}" for fault in error.faults)) from error


def validated(raw: dict[str, Any]) -> Params:
    """Validate settings, as sections of keys and values.

    Raises:
        UserError: they are invalid; the error lists every fault with its dotted key.
    """
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(*sorted(set(_fault(detail, raw) for detail in error.errors()))) from error


@lru_cache(maxsize=1)  # a stage reads the file several times, and parsing takes a tenth of a second
def _parsed(text: bytes, where: str) -> Any:
    return parsed(text, where)


def load(path: Path, *keys: str) -> Any:
    """Read the given top-level `keys` of params.yaml.

    A stage can access only the keys that it lists here; a test compares these lists with dvc.yaml.
    """
    params = read(path)
    return SimpleNamespace(**{key: getattr(params, key) for key in keys})


def flat(section: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted key."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _fault(detail: ErrorDetails, raw: dict[str, Any]) -> str:
    location = [str(part) for part in detail["loc"]]
    key, kind, value = ".".join(location), detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(_known_keys(location[:-1]))
        near = difflib.get_close_matches(location[-1], known, n=1)
        return f"{key}: unknown key" + (
            f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
        )
    if kind == "missing":
        return f"{key}: missing; presets/demo.yaml has every key"
    if kind == "literal_error":
        return f"{key}: expected one of {context['expected']}, got {value!r}"
    if kind in TYPES:
        return f"{key}: expected {TYPES[kind]}, got {value!r}"
    if kind == "value_error":
        message = str(context["error"])
        return f"{key}: {message}" if isinstance(value, list) else f"{key}.{message}" if key else message
    return f"{key}: {_rule(detail)}, got {value!r}"


def _rule(detail: ErrorDetails) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    for name, sign in signs.items():
        if name in detail.get("ctx", {}):
            return f"must be {sign} {detail['ctx'][name]}"
    return detail["msg"][0].lower() + detail["msg"][1:]


def _known_keys(section: list[str]) -> Iterator[str]:
    model: Any = Params
    for part in section:
        model = model.model_fields[part].annotation
    yield from model.model_fields


NUM_VIEWS = 6  # views per image in the pyramid
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
