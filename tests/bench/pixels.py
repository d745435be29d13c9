"""How much the pixels of a backbone know before any pixel is trained: a Markdown row for each backbone.

python -m tests.bench.pixels NAME=models/backbone.safetensors ...

The features are the last two maps of the backbone, each of unit length, at the stride of the pixel features.
K-means on those of training images is the baseline beside k-means on color and position: it is fitted,
assigned and scored as the pipeline's own clusters are. Two probes learn from the labels of every second
validation image, and are asked about the others: a linear classifier, and the nearest neighbors. An untrained
backbone stands beside the given ones.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from stages.backbone.checkpoint import build_backbone, load_backbone
from stages.backbone.trunk import Trunk
from stages.clustering.kmeans import KMeans
from stages.core.images import open_images
from stages.core.seeds import faiss_seed, numpy_generator
from stages.dataset.truth import IGNORED, Truth, read_truth
from stages.imaging.batches import normalise, to_unit
from stages.imaging.resample import enlarge, resample, shrink, whole
from stages.postprocessing.score_maps import cluster_maps
from stages.scoring.confusion import tally
from stages.scoring.metrics import match_by_overlap, score
from stages.settings.params import load
from stages.settings.schema import Params

KEYS = ("seed", "size_px", "pixel_k", "backbone", "train", "cluster")
BATCH = 32
NEIGHBOURS = 10
TAUGHT_PIXELS = 10_000  # that a probe learns from
HEAD = """\
| backbone | k-means: accuracy | mIoU | linear: accuracy | mIoU | neighbors: accuracy | mIoU |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |"""

Maps = Float[np.ndarray, "N D h w"]


@torch.no_grad()
def feature_maps(backbone: Trunk, images: np.ndarray, shown_px: int, side: int) -> Maps:
    """The last two maps of each image, concatenated: both of unit length, and of unit length together.

    Args:
        backbone: the trunk.
        images: uint8 [N, T, T, 3].
        shown_px: side at which the backbone sees them.
        side: side of the maps.
    """
    backbone.eval()
    found = []
    for batch in torch.from_numpy(np.array(images)).split(BATCH):
        view = resample(to_unit(batch), whole(len(batch)), (shown_px, shown_px))
        last = [F.normalize(one.float(), dim=1) for one in backbone(normalise(view))[-2:]]
        found.append(F.normalize(torch.cat([_at(one, side) for one in last], 1), dim=1))
    return torch.cat(found).numpy()


def _at(feature_map: Float[Tensor, "N C H W"], side: int) -> Float[Tensor, "N C h w"]:
    change = shrink if feature_map.shape[2] > side else enlarge
    return change(feature_map, (side, side))


def sample_pixels(
    backbone: Trunk, images: np.ndarray, params: Params, shown_px: int, side: int
) -> Float[np.ndarray, "P D"]:
    """Features of random pixels of random images, as many as `cluster` takes."""
    random, settings = numpy_generator(params.seed, "pixels"), params.cluster
    chosen = np.sort(random.permutation(len(images))[: settings.sample_images])
    each = min(side**2, max(1, settings.sample_pixels // len(chosen)))
    taken = []
    for some in np.array_split(chosen, max(1, len(chosen) // BATCH)):
        maps = feature_maps(backbone, images[some], shown_px, side)
        places = random.random((len(some), 1, side**2)).argsort(2)[:, :, :each]
        pixels = np.take_along_axis(maps.reshape(*maps.shape[:2], -1), places, 2)
        taken.append(pixels.transpose(0, 2, 1).reshape(-1, maps.shape[1]))
    return np.concatenate(taken)


def cluster_scores(pixels: Float[np.ndarray, "P D"], val: Maps, params: Params) -> Maps:
    """Cosine of each validation pixel with each center of k-means on training pixels."""
    kmeans = KMeans.of(params.cluster, params.pixel_k, spherical=True)
    centres = kmeans.fit(torch.from_numpy(pixels), seed=faiss_seed(params.seed, "pixels")).numpy()
    return np.einsum("ndhw,kd->nkhw", val, centres)


def probe_scores(classifier: Any, val: Maps, truth: Truth, seed: int) -> Maps:
    """Probabilities of all classes in the odd images, by a classifier of pixels of the even ones."""
    _, dim, height, width = val.shape
    labels = _shrunk(truth.maps[::2], height)
    known, taught = labels != IGNORED, val[::2].transpose(0, 2, 3, 1)
    chosen = numpy_generator(seed, "pixels", "probe").permutation(int(known.sum()))[:TAUGHT_PIXELS]
    classifier.fit(taught[known][chosen], labels[known][chosen])
    asked = val[1::2].transpose(0, 2, 3, 1)
    given = classifier.predict_proba(asked.reshape(-1, dim)).reshape(*asked.shape[:3], -1)
    scores = np.zeros((len(asked), len(truth.class_names), height, width), np.float32)
    scores[:, classifier.classes_] = given.transpose(0, 3, 1, 2)
    return scores


def _shrunk(labels: Int[np.ndarray, "N S S"], side: int) -> Int[np.ndarray, "N h w"]:
    """The label at the center of each cell."""
    centres = ((np.arange(side) + 0.5) * labels.shape[1] / side).astype(int)
    return labels[:, centres][:, :, centres]


def scored(scores: Maps, truth: Truth, *, is_matched: bool) -> str:
    """Accuracy and mIoU of score maps by the pipeline's scorer, as two cells of a table.

    Args:
        scores: of clusters or of classes.
        truth: of the same images.
        is_matched: whether clusters are matched to classes one to one; otherwise they are the classes.
    """
    num_classes, num_clusters = len(truth.class_names), scores.shape[1]
    rows = [slice(start, start + BATCH) for start in range(0, len(scores), BATCH)]
    maps = ((some, cluster_maps(scores[some], truth.maps.shape[1])) for some in rows)
    confusion = tally(maps, truth.maps, num_classes=num_classes, num_clusters=num_clusters).confusion
    found = score(confusion, match_by_overlap(confusion) if is_matched else np.arange(num_classes))
    return f"{100 * found.accuracy:.1f} | {100 * found.miou:.1f}"


def rows(
    probed: dict[str, Trunk], folder: Path, truth: Truth, params: Params, shown_px: int
) -> Iterator[str]:
    """One row of the table for each backbone."""
    train, val = open_images(folder / "train"), open_images(folder / "val")
    side = params.size_px // params.train.feature_stride
    asked = Truth(truth.class_names, truth.class_kinds, truth.maps[1::2])
    for name, backbone in probed.items():
        maps = feature_maps(backbone, val, shown_px, side)
        pixels = sample_pixels(backbone, train, params, shown_px, side)
        cells = [scored(cluster_scores(pixels, maps, params), truth, is_matched=True)]
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        near = KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights="distance")
        for classifier in (linear, near):
            given = probe_scores(classifier, maps, truth, params.seed)
            cells.append(scored(given, asked, is_matched=False))
        yield f"| {name} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pixels", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--images", type=Path, default=Path("data/images"))
    parser.add_argument("--truth", type=Path, default=Path("data/truth"))
    parser.add_argument("--shown-px", type=int, help="side that the backbone sees (default: size_px)")
    parser.add_argument("backbones", nargs="*", metavar="NAME=PATH")
    args = parser.parse_args(argv)
    params = load(args.params, *KEYS)
    torch.manual_seed(0)
    probed: dict[str, Trunk] = {"untrained": build_backbone(params.backbone.model_dump())}
    for named in args.backbones:
        name, path = named.split("=", 1)
        probed[name] = load_backbone(Path(path), params.backbone)
    print(HEAD, flush=True)
    for row in rows(probed, args.images, read_truth(args.truth), params, args.shown_px or params.size_px):
        print(row, flush=True)


if __name__ == "__main__":
    main()
