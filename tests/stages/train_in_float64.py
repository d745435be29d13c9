"""`train` and `cluster` with float64 in place of float32, for torchrun: sums in another order differ less."""

import sys
from collections.abc import Iterable

import torch

from stages import cluster, train
from stages.core import distributed


def run_all(params: Iterable[str]) -> None:
    """One run for each file of settings; what it writes bears that file's name."""
    for path in params:
        common = ["--params", path, "--images", "images/train"]
        argv = [
            "--views",
            "kept_views.npy",
            "--label-metrics",
            "label.json",
            "--backbone",
            "backbone.safetensors",
            "--history",
            f"{path}.csv",
        ]
        train.main([*common, *argv, "--out", f"{path}.safetensors", "--metrics", f"{path}.json"])
        argv = ["--segmenter", "segmenter.safetensors", "--out", f"{path}.centroids"]
        cluster.main([*common, *argv, "--metrics", f"{path}.cluster.json"])


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    distributed.leave = distributed.barrier  # processes can meet only once
    run_all(sys.argv[1:])
