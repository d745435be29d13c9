"""Views that guide the training, and those that are held out to measure the head (ours)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.backbone.checkpoint import build_backbone, describe
from stages.imaging.resample import Boxes
from stages.segmenter.network import Segmenter
from stages.settings.params import load
from stages.train import KEYS
from stages.training import guidance
from stages.training.building import build_segmenter
from stages.training.guidance import Guidance
from stages.training.losses import guidance_loss

NUM_LABELS = 4


class Images:
    """Gray images; notes which are read."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def batches(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Images of these rows."""
        for rows in batches:
            self.rows += rows.tolist()
            yield torch.full((len(rows), 3, 40, 40), 0.5)


def _segmenter(path: Path) -> Segmenter:
    params = load(path, *KEYS)
    return build_segmenter(build_backbone(describe(params.backbone)), params, 1.0)


def test_the_head_is_measured_on_views_from_all_over_the_set(
    tiny_params: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are sorted by name, so the first of them may be of one folder."""
    path = tiny_params({"train.image_loss.held_out": 0.9})
    settings = load(path, *KEYS).train
    monkeypatch.setattr(guidance, "MEASURED_VIEWS", 60)
    kept = torch.zeros(100, 6, dtype=torch.int64)
    guides = Guidance(
        settings.image_loss, settings.photometric, kept, weight=1.0, num_labels=NUM_LABELS, crop_ratio=0.5,
        seed=0, precision="float32",
    )  # fmt: skip
    cut, views = guides._cut, list[Tensor]()

    def note(image: Tensor, boxes: Boxes, *rest: Any) -> Tensor:
        views.append(torch.stack(boxes, dim=1))
        return cut(image, boxes, *rest)

    monkeypatch.setattr(guides, "_cut", note)
    images = Images()
    found = guides.held_out_accuracy(_segmenter(path), images, 20)  # type: ignore[arg-type]
    assert found is not None
    assert len(images.rows) == 60
    by_quarter = torch.histc(torch.tensor(images.rows, dtype=torch.float32), 4, 0, 100)
    assert by_quarter.min() >= 8
    _, by_view = torch.cat(views).unique(dim=0, return_counts=True)
    assert len(by_view) == 6
    assert by_view.min() >= 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_without_views_pulls_no_view(tiny_params: Callable[..., Path], smoothing: float) -> None:
    """Else its weight, the largest of all with `inverse`, would reach each view through the smoothing."""
    changes = {"train.image_loss.balance": "inverse", "train.image_loss.label_smoothing": smoothing}
    settings = load(tiny_params(changes), *KEYS).train
    kept = torch.tensor([[0, 0, 0, 1, -1, -1]] * 4)
    guides = Guidance(
        settings.image_loss, settings.photometric, kept, weight=1.0, num_labels=NUM_LABELS, crop_ratio=0.5,
        seed=0, precision="float32",
    )  # fmt: skip
    logits = torch.zeros(2, NUM_LABELS, requires_grad=True)
    labels = torch.tensor([0, 1])
    loss, _ = guidance_loss(logits, labels, guides._label_weight, smoothing)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[:, 2:] > 0).all()  # lowered, as the softmax alone would
    assert logits.grad[0, 0] < 0
    assert logits.grad[1, 1] < 0


def test_a_compiled_network_classifies_any_number_of_views_without_being_compiled_anew(
    tiny_params: Callable[..., Path],
) -> None:
    segmenter, compiled = _segmenter(tiny_params({})), []

    def note(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    for network in segmenter.parts():
        network.compile(backend=note, dynamic=False)
    for count in (2, 3, 4):
        segmenter.classify(torch.rand(count, 3, 32, 32))
    assert compiled == []
    segmenter(torch.rand(2, 3, 32, 32))
    assert compiled


def test_views_that_are_held_out_are_those_of_the_images_that_do_not_guide(
    tiny_params: Callable[..., Path],
) -> None:
    path = tiny_params({"train.image_loss.held_out": 0.4, "train.image_loss.views": "all"})
    settings = load(path, *KEYS).train
    guides = Guidance(
        settings.image_loss, settings.photometric, torch.zeros(20, 6, dtype=torch.int64), weight=1.0,
        num_labels=NUM_LABELS, crop_ratio=0.5, seed=0, precision="float32",
    )  # fmt: skip
    images = Images()
    guides.held_out_accuracy(_segmenter(path), images, 20)  # type: ignore[arg-type]
    _, (guiding, _), _ = guides.draw(torch.arange(20), 0.0, torch.Generator().manual_seed(0)).numbers
    assert len(images.rows) == 8 * 6
    assert len(guiding) == 12 * 6
    assert set(images.rows) | set(guiding.tolist()) == set(range(20))
    assert not set(images.rows) & set(guiding.tolist())
