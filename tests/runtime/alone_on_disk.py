"""Two processes with a disk each, for torchrun: what is in the state of the first reaches the second."""

import os
import sys
import time
from pathlib import Path

import torch

from stages.core import distributed
from stages.runtime.state import StageState
from stages.runtime.watch import Watch
from stages.settings.errors import UserError

if __name__ == "__main__":
    what, rank = sys.argv[1], int(os.environ["RANK"])
    distributed.join(torch.device("cpu"), timeout_seconds=5 if what == "hang" else 60)
    if what == "hang" and rank == 1:
        time.sleep(600)
    os.chdir(f"disk{rank}")
    if what == "dvc" and rank == 0:  # DVC runs on one host, and writes the hashes of this run there
        os.environ["DVC_STAGE"] = "pretrain"
    watch = Watch("pretrain", Path("params.yaml"), ("seed",), [Path("input")])
    try:
        state = StageState(watch, interval_seconds=0)
        if distributed.is_leader():
            state.save({"weights": [torch.arange(3), {"step": 7}]})
        torch.distributed.barrier()
        print(f"process {rank} has {state.load()}", flush=True)
    except UserError as fault:
        print(f"process {rank}: {fault}", flush=True)
    distributed.leave()
