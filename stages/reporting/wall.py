"""The wall: validation images, each beside its truth, its prediction and the result of the CRF."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from stages.dataset.truth import IGNORED, Truth
from stages.postprocessing.score_maps import cluster_maps
from stages.reporting.legend import Legend
from stages.reporting.pictures import Pictures
from stages.reporting.regions import grouped_scores, margins

SHOWS_ABOVE = 0.01  # share of its pixels from which an image counts as one that shows a cluster or a class
MOST_NAMED = 4  # clusters or classes in the description of a label map


def image_names(source: pd.Series) -> list[str]:
    """The file of each image; for several tiles of one file with the number of the tile."""
    number = (source.groupby(source).cumcount() + 1).astype(str)
    return source.where(~source.duplicated(keep=False), source + ", tile " + number).tolist()


@dataclass(frozen=True)
class Tile:
    """A picture with its heading and its description for those who cannot see it."""

    heading: str
    source: str
    alt: str
    is_labels: bool = False


@dataclass(frozen=True)
class Shot:
    """One validation image.

    Attributes:
        place: index in the split.
        name: file of the image.
        score: accuracy in [0, 1] under the matching, or without truth the mean margin; None without labels.
        shows: keys of the clusters (`k3`) and classes (`c1`) that it shows.
        tiles: its pictures, without the overlay, which is `refined` over `photo`.
    """

    place: int
    name: str
    score: float | None
    shows: tuple[str, ...]
    tiles: tuple[Tile, ...]
    photo: str = field(kw_only=True)
    refined: str = field(kw_only=True)


@dataclass(frozen=True)
class Split:
    """What is known of the validation images; memory maps.

    Attributes:
        images: RGB.
        names: file of each image.
        truth: label maps and classes.
        scores: float16 [M, K, h, w].
        refined: cluster ids after the CRF.
        has_crf: whether there is a CRF (`refine.backend`); without one these are those of the prediction.
    """

    images: UInt8[np.ndarray, "M S S 3"]
    names: Sequence[str]
    truth: Truth
    scores: np.ndarray
    refined: UInt8[np.ndarray, "M S S"]
    has_crf: bool


def spread(count: int, most: int) -> np.ndarray:
    """Up to `most` indices, evenly spaced over `count` images."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def draw_wall(split: Split, shown: np.ndarray, legend: Legend, pictures: Pictures) -> Iterator[Shot]:
    """Store the pictures of the images with the indices `shown`, one image in memory at a time."""
    class_names = split.truth.class_names
    cluster_names = tuple(legend.cluster_name(one) for one in range(len(legend.merged)))
    clusters = legend.merged, legend.cluster_colours, cluster_names, "k"
    classes = np.arange(len(class_names), dtype=np.uint8), legend.class_colours, class_names, "c"
    for place in shown.tolist():
        scores, name = split.scores[place : place + 1], split.names[place]
        predicted = cluster_maps(scores, split.images.shape[1])[0]
        maps = [
            ("prediction", predicted, *clusters),
            *([("after the CRF", np.asarray(split.refined[place]), *clusters)] if split.has_crf else []),
        ]
        truth = np.asarray(split.truth.maps[place])
        if split.truth.has_labels:
            maps.insert(0, ("truth", truth, *classes))
        photo = pictures.photo(f"image_{place:05d}", split.images[place])
        tiles, shows = [Tile("image", photo, f"Photograph {name}")], []
        for heading, labels, stands, colours, names, key in maps:
            alike = np.where(labels == IGNORED, IGNORED, stands[np.minimum(labels, len(stands) - 1)])
            shares = np.bincount(alike.astype(np.uint8).ravel(), minlength=IGNORED + 1) / alike.size
            source = pictures.labels(f"image_{place:05d}_{heading[:5]}", alike.astype(np.uint8), colours)
            tiles.append(Tile(heading, source, f"{heading}: {_in_words(shares, names)}", is_labels=True))
            shows += [f"{key}{one}" for one in np.flatnonzero(shares[:IGNORED] >= SHOWS_ABOVE)]
        if split.truth.has_labels:
            score = _accuracy(legend.cluster_to_class[predicted], truth)
        else:
            score = float(margins(grouped_scores(scores, legend.merged)).mean())
        yield Shot(
            place,
            name,
            score,
            tuple(dict.fromkeys(shows)),
            tuple(tiles),
            photo=photo,
            refined=tiles[-1].source,
        )


def _accuracy(classes: np.ndarray, truth: UInt8[np.ndarray, "S S"]) -> float | None:
    """Share of labeled pixels whose cluster is matched with their class; None without a labeled pixel."""
    labelled = truth != IGNORED
    return float((classes == truth)[labelled].mean()) if labelled.any() else None


def _in_words(shares: np.ndarray, names: Sequence[str]) -> str:
    """The largest parts of a label map, such as "sky 40 %, water 12 %"; shares by id, the last is ignored."""
    order = np.argsort(-shares[:-1], kind="stable")[:MOST_NAMED]
    parts = [
        f"{names[one]} {100 * shares[one]:.0f} %" for one in order.tolist() if shares[one] >= SHOWS_ABOVE
    ]
    return ", ".join(parts) or "no labeled pixel"
