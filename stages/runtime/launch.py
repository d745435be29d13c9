"""Several processes of one script on this machine, as `runtime.nproc` asks for."""

import os
import sys
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stages.runtime.pool import count_cores


def launch(module: str, argv: Sequence[str], num_processes: int, device: str) -> bool:
    """Start a script once more, in several processes of this machine, and wait for them.

    Args:
        module: the script, as `python -m` takes it.
        argv: its arguments.
        num_processes: `runtime.nproc`; 0 is one for each GPU, and one on a CPU.
        device: `device` of params.yaml.

    Returns:
        Whether it did: False where one process is enough, or where this is one of several already.
    """
    if num_processes == 0:
        num_processes = max(1, torch.cuda.device_count()) if device in ("auto", "cuda") else 1
    if num_processes == 1 or "WORLD_SIZE" in os.environ:
        return False
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // num_processes)))
    local = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
    )
    try:
        elastic_launch(local, sys.executable)("-m", module, *argv)
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)  # its own message is on the screen already
    return True
