"""Clustering all pixels of an epoch as PiCIE does: a pass for each view, and one more to count labels (3)."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.backbone.checkpoint import build_backbone, describe
from stages.clustering.kmeans import KMeans, MiniBatchKMeans
from stages.core.device import torch_generator
from stages.core.seeds import faiss_seed
from stages.imaging.batches import ImageSource
from stages.imaging.resample import Boxes
from stages.settings.params import load
from stages.train import KEYS
from stages.training import clusters
from stages.training.building import build_segmenter
from stages.training.clusters import PixelClusterer
from stages.training.siamese import Siamese, View

CHANGES = {
    "train.clustering.kmeans": "minibatch",
    "train.clustering.unit_centroids": False,
    "train.clustering.assign": "euclidean",
    "train.clustering.init_batches": 2,
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_pass_for_each_view_and_one_more_that_counts(
    packed: Path, tiny_params: Callable[..., Path], size: int
) -> None:
    """With `batches_per_update`, a mini-batch and its statistics are of several training batches."""
    params = load(tiny_params({**CHANGES, "train.clustering.batches_per_update": size}), *KEYS)
    settings, epoch = params.train, 1
    siamese = Siamese(settings, size_px=params.size_px, precision="float32")
    clusterer = PixelClusterer(settings, siamese, pixel_k=params.pixel_k, seed=params.seed)
    frozen = build_segmenter(build_backbone(describe(params.backbone)), params, 0.0).requires_grad_(False)
    images = ImageSource(np.load(packed / "train/images.npy"), CPU)
    batches = list(torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).split(4))
    plain = copy.deepcopy(frozen)
    found = clusterer.cluster(frozen, images, batches, epoch)

    def views(*steps: int) -> list[View]:
        parts: tuple[list[View], list[View]] = ([], [])
        for step in steps:
            (image,) = images.batches([batches[step]])
            generator = torch_generator(params.seed, "train", "views", epoch, step)
            plan = siamese.views.draw(len(image), image, generator)
            for view in range(2):
                parts[view].append(siamese.views.render(image, plan, view))
        whole = [torch.cat([one.image for one in part]) for part in parts]
        boxes = Boxes(*map(torch.cat, zip(*(one.boxes for one in parts[1]), strict=True)))
        return [View(whole[0], None, None), View(whole[1], None, boxes)]

    for view in range(2):
        plain_kmeans = KMeans(
            params.pixel_k,
            iterations=settings.clustering.iterations,
            restarts=settings.clustering.restarts,
            spherical=False,
        )
        seed = faiss_seed(params.seed, "train", "kmeans", epoch, view)
        updates = torch.arange(len(batches)).split(size)
        running = MiniBatchKMeans(plain_kmeans, init_batches=2, num_batches=len(updates), seeds=[seed])
        for steps in updates:
            running.add(siamese.features(plain, views(*steps.tolist())[view]).pixels.all())
        np.testing.assert_array_equal(found[view].centroids, running.centroids()[0])
        np.testing.assert_array_equal(found[view].counts, running.counts[0])
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(frozen.state_dict()[name], value, rtol=0, atol=0)

    frozen.eval()
    centroids = [one.centroids for one in found]
    expected = np.zeros((2, params.pixel_k), int)
    for step in range(len(batches)):
        for view, one in enumerate(views(step)):
            pixels = siamese.features(frozen, one).pixels.all().double().numpy()
            squares = ((pixels[:, None] - centroids[view].double().numpy()) ** 2).sum(2)
            expected[view] += np.bincount(squares.argmin(1), minlength=params.pixel_k)
    counted = clusterer.count_all(frozen, images, batches, epoch, centroids)
    np.testing.assert_array_equal(np.stack(counted), expected)
    assert expected.sum() == 2 * len(images) * siamese.feature_px**2


def test_assignments_that_were_counted_are_kept_while_there_is_room(
    packed: Path, tiny_params: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load(tiny_params(CHANGES), *KEYS)
    siamese = Siamese(params.train, size_px=params.size_px, precision="float32")
    clusterer = PixelClusterer(params.train, siamese, pixel_k=params.pixel_k, seed=params.seed)
    frozen = build_segmenter(build_backbone(describe(params.backbone)), params, 0.0)
    frozen.eval().requires_grad_(False)
    images = ImageSource(np.load(packed / "train/images.npy"), CPU)
    batches = list(torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).split(4))
    centroids = list(torch.randn(2, params.pixel_k, params.train.fpn_dim))
    monkeypatch.setattr(clusters, "KEPT_BYTES", 2 * (2 * 4 * siamese.feature_px**2) + 1)  # of two batches
    clusterer.count_all(frozen, images, batches, 1, centroids)
    for step in range(2):
        (image,) = images.batches([batches[step]])
        generator = torch_generator(params.seed, "train", "views", 1, step)
        views = siamese.views.pair(image, siamese.views.draw(len(image), image, generator))
        kept = clusterer.kept_labels(step)
        assert kept is not None
        for one, again in zip(kept, clusterer.assign(frozen, views, centroids), strict=True):
            assert torch.equal(one, again)
    assert clusterer.kept_labels(2) is None
    clusterer.cluster(frozen, images, batches, 2)
    assert clusterer.kept_labels(0) is None, "of the epoch before"
