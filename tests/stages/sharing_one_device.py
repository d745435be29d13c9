"""Stages in several processes on one device, for torchrun: NCCL wants a GPU for each, gloo does not."""

import importlib
import sys
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist

from stages.core import distributed


def join(device: torch.device, timeout_seconds: float) -> torch.device:
    """As `distributed.join`, with the same device for all processes."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_seconds))
    return device


def run_all(lines: Iterable[str]) -> None:
    """Run each line: a stage and its arguments."""
    for stage, *arguments in map(str.split, lines):
        importlib.import_module(f"stages.{stage}").main(arguments)


if __name__ == "__main__":
    distributed.join, distributed.leave = join, dist.barrier  # processes can meet only once
    run_all(sys.argv[1:])
