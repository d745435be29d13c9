"""Both views of a batch in one call of the network, against one view after the other."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.backbone.checkpoint import build_backbone, describe
from stages.settings.params import load
from stages.train import KEYS, build_segmenter, build_trainer
from stages.training.siamese import Siamese


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
