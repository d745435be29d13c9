"""Whole epochs of `train` in float64, from the outputs of the networks: Eq. 1 to 6, and the steps of Adam."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.backbone.checkpoint import build_backbone, describe
from stages.core.device import torch_generator
from stages.imaging.batches import ImageSource
from stages.imaging.photometric import apply_colour, draw_jitter
from stages.segmenter.network import Segmenter
from stages.settings.params import load
from stages.settings.schema_train import Train
from stages.train import KEYS, train
from stages.training.building import build_segmenter, build_trainer
from stages.training.clusters import PixelClusterer
from stages.training.siamese import Siamese, View, cut_features
from stages.training.trainer import FIGURES
from tests.bench.pretraining import NO_STATE

NUM_IMAGES, BATCH_SIZE, NUM_VIEWS, NUM_LABELS = 8, 4, 6, 4
LAMBDA, CROSS_WEIGHT, TEMPERATURE = 0.7, 0.3, 0.5
CPU = torch.device("cpu")
CHANGES = {
    "train.batch_size": BATCH_SIZE,
    "train.lr": 0.01,  # so fast that the network soon assigns pixels in another way than its frozen copy
    "train.photometric.blur_probability": 0.0,  # so that the crops below are slices
    "train.context.start": "random",
    "train.pixel_loss.cross_weight": CROSS_WEIGHT,
    "train.pixel_loss.temperature": TEMPERATURE,
}
CASES: dict[str, dict[str, Any]] = {
    "a sample is clustered, and views are images": {
        "crop_ratio": 0.8,  # of 40 px, and views have 32
        "train.image_loss.views": "all",
        "train.clustering.assign_batch_norm": "running",
    },
    "all pixels are clustered, and views are pooled": {
        "crop_ratio": 0.5,
        "train.image_loss.views": "pooled",
        "train.clustering.kmeans": "minibatch",
        "train.clustering.init_batches": 1,  # so that later batches move the clusters
        "train.clustering.unit_centroids": False,
        "train.clustering.assign": "euclidean",
        "train.pixel_loss.balance": "frequency",
    },
}
CORNERS_AND_CENTRE = ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))  # in halves of what a crop leaves out


class Step(NamedTuple):
    """What a step of training was given and left."""

    image: Tensor
    network: Segmenter  # before the step
    figures: dict[str, float]
    gradients: dict[str, Tensor]


class Epoch(NamedTuple):
    """What an epoch of training was given and left."""

    network: Segmenter  # when it began
    batches: Sequence[Tensor]
    centroids: list[Tensor]
    steps: list[Step]


def _note_epochs(params: Any, array: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> list[Epoch]:
    """Train, and keep a copy of the network before every epoch and every step."""
    segmenter = build_segmenter(build_backbone(describe(params.backbone)), params, LAMBDA)
    trainer = build_trainer(segmenter, _kept_views(), params, LAMBDA)
    start_epoch, train_step = trainer.start_epoch, trainer.train_step
    epochs: list[Epoch] = []

    def note_epoch(images: ImageSource, batches: Sequence[Tensor], number: int) -> None:
        before = copy.deepcopy(segmenter)
        start_epoch(images, batches, number)
        epochs.append(Epoch(before, batches, [one.clone() for one in trainer.centroids()], []))

    def note_step(image: Tensor, *rest: Any) -> Tensor:
        given, before = image.clone(), copy.deepcopy(segmenter)
        measured = train_step(image, *rest)
        gradients = {
            name: value.grad.clone() for name, value in segmenter.named_parameters() if value.grad is not None
        }
        figures = dict(zip(FIGURES, measured.tolist(), strict=True))
        epochs[-1].steps.append(Step(given, before, figures, gradients))
        return measured

    monkeypatch.setattr(trainer, "start_epoch", note_epoch)
    monkeypatch.setattr(trainer, "train_step", note_step)
    train(trainer, ImageSource(array, CPU), params, NO_STATE)
    return epochs


def _row(image: Tensor, array: np.ndarray) -> int:
    """The one stored image that this is."""
    stored = (image.permute(1, 2, 0) * 255).round().byte().numpy()
    (row,) = (number for number, one in enumerate(array) if (one == stored).all())
    return row


def _cut(source: Tensor, view: int, side: int) -> Tensor:
    """A view of the pyramid (4.2.1): the whole, made smaller, or a crop at its own size."""
    if view == 0:
        return F.interpolate(source[None], (side, side), mode="bilinear", antialias=True)[0]
    half = (source.shape[1] - side) // 2
    top, left = (half * place for place in CORNERS_AND_CENTRE[view - 1])
    return source[:, top : top + side, left : left + side]


def _pixels(whole_map: Tensor, view: View) -> Tensor:
    """Unit features of all pixels; the map of the second view is cropped (3)."""
    return F.normalize(cut_features(whole_map, view.boxes).permute(0, 2, 3, 1).flatten(0, 2))


def _nearest(network: Segmenter, view: View, centroids: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cdist(_pixels(network(view.image), view), centroids).argmin(1)


def _cross_entropy(scores: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean of -log softmax(scores)[target] with the weight of each target."""
    chances = scores.exp() / scores.exp().sum(1, keepdim=True)
    losses = -chances[torch.arange(len(target)), target].log()
    return (weight[target] * losses).sum() / weight[target].sum()


def _pixel_losses(
    pixels: Sequence[Tensor],
    centroids: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Within a view and across the two (Eq. 2 to 4)."""
    losses = [
        [
            _cross_entropy(own @ centroids[other].T / TEMPERATURE, targets[other], weights[other])
            for other in range(2)
        ]
        for own in pixels
    ]
    return (losses[0][0] + losses[1][1]) / 2, (losses[0][1] + losses[1][0]) / 2


def _weights(balance: str, assigned: Sequence[Sequence[Tensor]], num_clusters: int) -> list[Tensor]:
    """Loss weights of the clusters of both views: all the same, or by what the epoch assigns to them."""
    counts = [
        torch.bincount(torch.cat([pair[view] for pair in assigned]), minlength=num_clusters).clamp_min(1)
        for view in range(2)
    ]
    return [
        one / one.sum() * num_clusters if balance == "frequency" else torch.ones(num_clusters)
        for one in counts
    ]


def _kept_views() -> np.ndarray:
    """Random pseudo-labels of half of the views."""
    rng = np.random.default_rng(0)
    shape = (NUM_IMAGES, NUM_VIEWS)
    return np.where(rng.random(shape) < 0.5, rng.integers(0, NUM_LABELS, shape), -1)


def _image_loss(
    step: Step, whole_map: Tensor, array: np.ndarray, settings: Train, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Eq. 6 of all kept views of the images of a step, whichever these are, and the accuracy."""
    kept = _kept_views()[[_row(one, array) for one in step.image]]
    place, view = np.nonzero(kept >= 0)
    guides = list(zip(place.tolist(), view.tolist(), strict=True))
    if settings.image_loss.views == "pooled":
        cuts = torch.stack([_cut(whole_map[place], view, 8) for place, view in guides])
    else:
        cuts = torch.stack([_cut(step.image[place], view, 32) for place, view in guides])
        jitter = draw_jitter(len(guides), settings.photometric, 32, generator)
        cuts = step.network(apply_colour(cuts, jitter))
    assert step.network.image_head is not None
    logits = step.network.image_head(cuts)
    labels = torch.from_numpy(kept[place, view])
    right = (logits.argmax(1) == labels).double().mean().item()
    return _cross_entropy(logits, labels, torch.ones(NUM_LABELS)), right


@pytest.mark.parametrize("case", CASES)
def test_every_step_of_two_epochs(
    packed: Path,
    tiny_params: Callable[..., Path],
    in_float64: None,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    """Clusters and targets are of the network as the epoch found it, labels of these images (Eq. 1 to 6)."""
    torch.manual_seed(0)
    params = load(tiny_params({**CHANGES, **CASES[case]}), *KEYS)
    settings = params.train
    array = np.load(packed / "train/images.npy")[:NUM_IMAGES]
    siamese = Siamese(settings, size_px=params.size_px, precision="float32")
    has_moved = False
    for number, epoch in enumerate(_note_epochs(params, array, monkeypatch)):
        clusterer = PixelClusterer(settings, siamese, pixel_k=params.pixel_k, seed=params.seed)
        frozen = epoch.network.requires_grad_(False).train()
        clusters = clusterer.cluster(frozen, ImageSource(array, CPU), epoch.batches, number)
        centroids = [one.centroids for one in clusters]
        torch.testing.assert_close(epoch.centroids, centroids)
        frozen.train(settings.clustering.assign_batch_norm == "batch")

        places = range(len(epoch.steps))
        generators = [torch_generator(params.seed, "train", "views", number, place) for place in places]
        plans = [siamese.views.draw_all(BATCH_SIZE, array.shape[1], one) for one in generators]
        views = [
            [siamese.views.render(step.image, plan, view) for view in range(2)]
            for step, plan in zip(epoch.steps, plans, strict=True)
        ]
        targets = [[_nearest(frozen, *one) for one in zip(pair, centroids, strict=True)] for pair in views]
        weights = _weights(settings.pixel_loss.balance, targets, params.pixel_k)
        for step, pair, assigned, generator in zip(epoch.steps, views, targets, generators, strict=True):
            now = _nearest(step.network.train(frozen.training), pair[0], centroids[0])
            has_moved |= not torch.equal(now, assigned[0])
            maps = [step.network.train()(view.image) for view in pair]
            pixels = [_pixels(*one) for one in zip(maps, pair, strict=True)]
            within, cross = _pixel_losses(pixels, centroids, assigned, weights)
            guided, right = _image_loss(step, maps[1], array, settings, generator)
            loss = (1 - CROSS_WEIGHT) * within + CROSS_WEIGHT * cross + LAMBDA * guided  # Eq. 1 and 5
            figures = (loss.item(), within.item(), cross.item(), guided.item(), right, LAMBDA, 1)
            assert step.figures == pytest.approx(dict(zip(FIGURES, figures, strict=True)), rel=1e-6)
            step.network.zero_grad()
            loss.backward()
            gradients = {name: value.grad for name, value in step.network.named_parameters()}
            torch.testing.assert_close(step.gradients, gradients, rtol=1e-5, atol=1e-9)
    assert has_moved, "what is frozen was not put to the test"


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_first_step_is_that_of_adam(
    packed: Path, tiny_params: Callable[..., Path], in_float64: None, decay: float
) -> None:
    """Kingma and Ba (2015), with weight decay as a part of the gradient: w <- w - lr g / (|g| + 1e-8) (A.2).

    The kernels of the context module have no weight decay, and a rate of their own (ours).
    """
    torch.manual_seed(0)
    changes = {"train.weight_decay": decay, "train.context.start": "random", "train.context.norm": "count"}
    params = load(tiny_params(changes), *KEYS)
    segmenter = build_segmenter(build_backbone(describe(params.backbone)), params, 0.0)
    trainer = build_trainer(segmenter, np.full((NUM_IMAGES, NUM_VIEWS), -1), params, 0.0)
    images = ImageSource(np.load(packed / "train/images.npy")[:NUM_IMAGES], CPU)
    batches = list(torch.arange(NUM_IMAGES).split(params.train.batch_size))
    trainer.start_epoch(images, batches, 0)
    before = {name: value.detach().clone() for name, value in segmenter.named_parameters()}
    (image,) = images.batches(batches[:1])
    trainer.train_step(image, batches[0], 0, 0, len(batches))
    kernels = "context.log_kernel"
    assert kernels in before
    for name, value in segmenter.named_parameters():
        assert value.grad is not None, name
        gradient = value.grad if name == kernels else value.grad + decay * before[name]
        rate = params.train.lr * (params.train.context.lr_factor if name == kernels else 1)
        expected = before[name] - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=1e-9, msg=name)
