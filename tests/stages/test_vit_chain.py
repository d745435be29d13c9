"""A tiny ViT through every stage that knows a network, by their command lines."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stages import cluster, embed, label, predict, pretrain, select_views, train
from stages.checkpoints.published import HEADS
from stages.tools import segment
from tests.datasets import write_image
from tests.published_models import DINOV2, random_trunk

VIT = {"backbone__arch": "vit_small", "backbone__width": 2, "train__feature_stride": 2}
STAGES = {
    pretrain: "--images images/train --out backbone.safetensors --history pretrain.csv "
    "--metrics pretrain.json",
    embed: "--images images/train --backbone backbone.safetensors --out embeddings.npy",
    label: "--embeddings embeddings.npy --backbone backbone.safetensors --out labels.safetensors "
    "--metrics label.json",
    select_views: "--labels labels.safetensors --out kept_views.npy --metrics select_views.json",
    train: "--images images/train --views kept_views.npy --label-metrics label.json "
    "--backbone backbone.safetensors --out segmenter.safetensors --history train.csv --metrics train.json",
    cluster: "--images images/train --segmenter segmenter.safetensors --out pixel_centroids.safetensors "
    "--metrics cluster.json",
    predict: "--images images/val --segmenter segmenter.safetensors --centroids pixel_centroids.safetensors "
    "--out predictions.npy",
}


@pytest.mark.parametrize("patch_px", [8, 14], ids=["mocov2", "dinov2"])
def test_the_flow_runs_on_a_vit(bench: Any, patch_px: int) -> None:
    """MoCo v2 from scratch with patches of 8 px, or a published DINOv2 with 14, which do not divide 32."""
    changes = {**VIT, "backbone__patch_px": patch_px, "pretrain__epochs": 1, "train__epochs": 1}
    if patch_px == 14:
        torch.save(random_trunk(DINOV2).state_dict(), "dinov2.pth")
        changes |= {"pretrain__method": "none", "pretrain__init": "dinov2.pth", "backbone__layer_scale": True}
    bench.params(**changes)
    for stage, arguments in STAGES.items():
        stage.main(arguments.split())
    assert np.load("embeddings.npy").shape == (16, 6, 12)
    history = pd.read_csv("train.csv")
    assert len(history) == 1
    assert np.isfinite(history.drop(columns="moved_share").to_numpy()).all()  # of two epochs
    trained, about = bench.tensors("segmenter.safetensors")
    assert about["backbone"] == {
        "arch": "vit_small",
        "width": 2,
        "patch_px": patch_px,
        "registers": 0,
        "layer_scale": patch_px == 14,
    }
    backbone, _ = bench.tensors("backbone.safetensors")
    trunk = {name: value for name, value in backbone.items() if not name.startswith(HEADS)}
    still = [name for name, value in trunk.items() if torch.equal(trained[f"backbone.{name}"], value)]
    assert still == [], "every part of it learns"
    predictions = np.load("predictions.npy")
    assert predictions.shape == (4, 3, 16, 16)
    assert np.isfinite(predictions).all()

    rng = np.random.default_rng(0)
    write_image(Path("photos/wide.png"), rng.integers(0, 255, (37, 90, 3), dtype=np.uint8))
    segment.main(["photos", "--out", "segmented", "--model", ".", "--device", "cpu"])
    assert Path("segmented/wide.png").exists()
