"""`embed` through its command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import embed
from stages.core.tensors import write_tensors

ARGV = ["--images", "images/train", "--backbone", "backbone.safetensors", "--out", "embeddings.npy"]


@pytest.fixture
def ready(bench: Any) -> Any:
    bench.write_backbone()
    return bench


def test_writes_a_feature_for_each_view_of_each_image(ready: Any) -> None:
    embed.main(ARGV)
    embeddings = np.load("embeddings.npy")
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (16, 6, 64))
    assert np.isfinite(embeddings).all()
    flat = embeddings.reshape(96, -1)
    assert len(np.unique(flat.round(6), axis=0)) == 96, "views are told apart"


def test_the_same_inputs_give_the_same_bytes(ready: Any) -> None:
    embed.main(ARGV)
    first = ready.hashes("embeddings.npy")
    embed.main(ARGV)
    assert ready.hashes("embeddings.npy") == first


def test_batches_change_nothing_that_counts(ready: Any) -> None:
    embed.main(ARGV)
    whole = np.load("embeddings.npy")
    ready.params(embed__batch_size=5)
    embed.main(ARGV)
    np.testing.assert_allclose(np.load("embeddings.npy"), whole, atol=1e-5)


def test_rows_follow_the_images(ready: Any) -> None:
    embed.main(ARGV)
    before = np.load("embeddings.npy")
    np.save("images/train/images.npy", np.load("images/train/images.npy")[::-1].copy())
    embed.main(ARGV)
    np.testing.assert_allclose(np.load("embeddings.npy"), before[::-1], atol=1e-5)


@pytest.mark.parametrize("changes", [{"crop_ratio": 0.7}, {"embed__centre_ratio": 1.0}], ids=str)
def test_geometry_decides(ready: Any, changes: dict[str, float]) -> None:
    embed.main(ARGV)
    before = np.load("embeddings.npy")
    ready.params(**changes)
    embed.main(ARGV)
    moved = np.abs(np.load("embeddings.npy") - before).max((0, 2))
    assert (moved[1:] > 1e-3).all()
    assert (moved[0] > 1e-3) == ("embed__centre_ratio" in changes), "the whole image is no crop"


def test_a_backbone_of_another_architecture_is_refused(ready: Any) -> None:
    ready.params(backbone__arch="resnet50")
    assert ready.fault(embed.main, ARGV) == (
        "backbone.safetensors: holds {'arch': 'resnet18', 'stem_stride': 2, 'width': 8}, but params.yaml "
        "says backbone: {'arch': 'resnet50', 'width': 8, 'stem_stride': 2}; "
        "run `dvc repro` to pretrain the backbone of params.yaml"
    )


def test_a_missing_backbone_is_named(ready: Any) -> None:
    Path("backbone.safetensors").unlink()
    assert ready.fault(embed.main, ARGV) == ("backbone.safetensors: not found; run `dvc repro` to make it")
    assert not Path("embeddings.npy").exists()


def test_heads_beside_the_trunk_are_left_out_by_name_and_nothing_else_is(ready: Any) -> None:
    embed.main(ARGV)
    plain = ready.hashes("embeddings.npy")
    heads = {f"{name}.weight": torch.ones(2, 2) for name in ("projection.0", "prototypes", "classifier")}
    ready.write_backbone(heads)
    embed.main(ARGV)
    assert ready.hashes("embeddings.npy") == plain
    tensors, about = ready.tensors("backbone.safetensors")
    write_tensors(Path("backbone.safetensors"), {**tensors, "made_up.weight": torch.ones(1)}, about)
    message = ready.fault(embed.main, ARGV)
    assert message.startswith("backbone.safetensors: cannot be loaded as a backbone by this version (")
    assert message.endswith("); delete it and run `dvc repro` to make it again")
    assert '"made_up.weight"' in message


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_vit_gives_its_class_token(ready: Any, precision: str) -> None:
    ready.params(backbone__arch="vit_small", backbone__width=2, precision=precision)
    ready.write_backbone()
    embed.main(ARGV)
    embeddings = np.load("embeddings.npy")
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (16, 6, 12))
    assert np.isfinite(embeddings).all()
    # The class token has passed the last norm, whose scale is 1 and shift 0 before training.
    np.testing.assert_allclose(embeddings.mean(2), 0, atol=1e-2)
    np.testing.assert_allclose(embeddings.std(2), 1, atol=1e-2)
