"""The memory of a GPU runs out: the message names the setting that helps, and a saved state stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import cluster, embed, label, predict, pretrain, train
from stages.backbone.resnet import ResNet
from stages.clustering.kmeans import MiniBatchKMeans
from stages.training.trainer import Trainer
from tests.workbench import TRAIN_INPUTS

IMAGES, SEGMENTER = ["--images", "images/train"], ["--segmenter", "segmenter.safetensors"]
HISTORY = ["--history", "h.csv", "--metrics", "m.json", "--out", "out"]
STAGES: dict[str, tuple[Callable[[list[str]], None], list[str]]] = {
    "pretrain": (pretrain.main, [*IMAGES, *HISTORY]),
    "embed": (embed.main, [*IMAGES, "--backbone", "backbone.safetensors", "--out", "out"]),
    "train": (train.main, [*TRAIN_INPUTS, *HISTORY]),
    "cluster": (cluster.main, [*IMAGES, *SEGMENTER, "--out", "out", "--metrics", "m.json"]),
    "predict": (
        predict.main,
        [*IMAGES, *SEGMENTER, "--centroids", "pixel_centroids.safetensors", "--out", "out"],
    ),
}
# As CUDA says it.
SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which ..."


@pytest.mark.parametrize("stage", STAGES)
def test_the_size_of_a_pass_is_named(bench: Any, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    bench.write_backbone()
    bench.write_kept_views()
    bench.write_segmenter()
    bench.write_centroids()

    def forward(network: ResNet, image: torch.Tensor) -> None:
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setattr(ResNet, "forward", forward)
    main, argv = STAGES[stage]
    message = bench.fault(main, argv)
    # The first pass of `train` is for k-means, which takes whole batches.
    is_part = stage == "pretrain"
    key = f"{stage}.micro_batch" if is_part else f"{stage}.batch_size"
    assert message.startswith(f"params.yaml: {key}: the memory of the GPU ran out (CUDA out of memory); ")
    remedy = f"set {key} to a smaller part of batch_size than now" if is_part else f"lower {key}"
    assert f"; {remedy}, set precision: bfloat16," in message
    assert not Path("out").exists()


def test_a_step_of_training_names_the_size_of_its_passes(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write_backbone()
    bench.write_kept_views()

    def step(*_: object) -> None:
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setattr(Trainer, "train_step", step)
    message = bench.fault(*STAGES["train"])
    assert message.startswith("params.yaml: train.micro_batch: the memory of the GPU ran out")
    assert "; set train.micro_batch to a smaller part of batch_size than now, set precision" in message


def test_a_method_that_cannot_cut_its_batch_is_to_lower_it(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(network: ResNet, image: torch.Tensor) -> None:
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setattr(ResNet, "forward", forward)
    bench.params(pretrain__method="slotcon")
    message = bench.fault(*STAGES["pretrain"])
    assert message.startswith("params.yaml: pretrain.batch_size: the memory of the GPU ran out")
    assert "; lower pretrain.batch_size, set precision: bfloat16," in message


def test_labeling_has_a_remedy(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write_backbone()
    np.save("embeddings.npy", np.ones((16, 6, 8), np.float32))

    def bring(*_: object) -> None:
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setattr(label, "Space", bring)
    files = ["--embeddings", "embeddings.npy", "--backbone", "backbone.safetensors"]
    message = bench.fault(label.main, [*files, "--out", "out", "--metrics", "m.json"])
    assert message.startswith("label: the memory of the GPU ran out (CUDA out of memory); end other programs")


def test_the_features_that_wait_for_kmeans_have_a_remedy_of_their_own(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller `micro_batch` would not help: the features of all first batches are held."""
    bench.write_backbone()
    bench.write_kept_views()
    bench.params(train__clustering__kmeans="minibatch")

    def add(kmeans: MiniBatchKMeans, pixels: torch.Tensor) -> None:
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setattr(MiniBatchKMeans, "add", add)
    main, argv = STAGES["train"]
    message = bench.fault(main, argv)
    assert message.startswith("params.yaml: train.clustering: the memory of the GPU ran out")
    assert "; lower train.clustering.init_batches" in message
