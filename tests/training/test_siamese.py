"""Both views of a batch in one call of the network, against one view after the other."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.backbone.checkpoint import build_backbone, describe
from stages.imaging.batches import ImageSource
from stages.settings.params import load
from stages.train import KEYS
from stages.training.building import build_segmenter, build_trainer
from stages.training.siamese import Siamese
from stages.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("context_image", ["view", "clean"])
def test_both_views_at_once_are_one_after_the_other(
    tiny_params: Callable[..., Path], context_image: str, is_training: bool
) -> None:
    """Features, gradients, and the statistics and counters that batch norm keeps of each view."""
    torch.manual_seed(0)
    changes = {"train.context.image": context_image, "train.context.start": "random"}
    params = load(tiny_params(changes), *KEYS)
    siamese = Siamese(params.train, size_px=params.size_px, precision="float32")
    together = build_segmenter(build_backbone(describe(params.backbone)), params, 0.0).train(is_training)
    # A trainer replaces the batch norms of its network.
    build_trainer(together, torch.full((4, 6), -1).numpy(), params, 0.0)
    alone = copy.deepcopy(together)
    image = torch.rand(4, 3, 48, 48)
    plan = siamese.views.draw(len(image), image, torch.Generator().manual_seed(1))
    found = siamese.features_of_both(together, siamese.views.pair(image, plan))
    expected = [siamese.features(alone, siamese.views.render(image, plan, view)) for view in range(2)]
    for both, one in zip(found, expected, strict=True):
        torch.testing.assert_close(both.pixels.feature, one.pixels.feature, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both.whole_map, one.whole_map, rtol=1e-4, atol=1e-4)
    for features in (found, expected):
        sum((1 + view) * one.pixels.feature.square().mean() for view, one in enumerate(features)).backward()
    for (name, both), one in zip(together.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(both.grad, one.grad, rtol=1e-3, atol=1e-5, msg=name)
    for (name, both), one in zip(together.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(both, one, msg=name)
        if name.endswith("num_batches_tracked"):
            assert int(both) == (2 if is_training else 0)


@pytest.mark.parametrize("color_views", ["both", "second"])
def test_the_first_view_is_assigned_in_changed_colours_and_learnt_from_as_the_setting_says(
    tiny_params: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, color_views: str
) -> None:
    params = load(tiny_params({"train.color_views": color_views}), *KEYS)
    segmenter = build_segmenter(build_backbone(describe(params.backbone)), params, 0.0)
    trainer: Trainer = build_trainer(segmenter, torch.full((8, 6), -1).numpy(), params, 0.0)
    images = ImageSource(np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), np.uint8), CPU)
    batches = list(torch.arange(8).split(params.train.batch_size))
    trainer.start_epoch(images, batches, 0)
    seen = []
    monkeypatch.setattr(
        trainer._clusterer,
        "assign",
        lambda frozen, pair, *rest, assign=trainer._clusterer.assign: (
            seen.append(pair.images),
            assign(frozen, pair, *rest),
        )[1],
    )
    trainer._objective.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].views.images))
    (image,) = images.batches(batches[:1])
    trainer.train_step(image, batches[0], 0, 0, len(batches))
    (first, second), (learnt, other) = (one.chunk(2) for one in seen)
    assert torch.equal(second, other)
    assert torch.equal(first, learnt) == (color_views == "both")
