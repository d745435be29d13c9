"""`train` and `cluster` with float64 in place of float32, for torchrun: sums in another order differ less."""

import sys
from collections.abc import Iterable

import torch
import torch.distributed as dist

from stages import cluster, train
from stages.core import distributed
from tests.workbench import TRAIN_INPUTS


def run_all(params: Iterable[str]) -> None:
    """One run for each file of settings; what it writes bears that file's name."""
    for path in params:
        argv = ["--params", path, *TRAIN_INPUTS, "--history", f"{path}.csv"]
        train.main([*argv, "--out", f"{path}.safetensors", "--metrics", f"{path}.json"])
        argv = ["--params", path, "--images", "images/train", "--segmenter", "segmenter.safetensors"]
        cluster.main([*argv, "--out", f"{path}.centroids", "--metrics", f"{path}.cluster.json"])


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    distributed.leave = dist.barrier  # processes can meet only once
    run_all(sys.argv[1:])
