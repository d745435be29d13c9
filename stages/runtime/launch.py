"""Multi-process launch of a script on this machine (`runtime.nproc`)."""

import os
import sys
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stages.runtime.pool import count_cores


def launch(module: str, argv: Sequence[str], num_processes: int, device: str) -> bool:
    """Run a script in several processes on this machine and wait for them to finish.

    Args:
        module: module name of the script, as for `python -m`.
        argv: command-line arguments of the script.
        num_processes: `runtime.nproc`; 0 means one per GPU, or one on the CPU.
        device: `device` of params.yaml.

    Returns:
        True if it launched processes; False if one process suffices or this process was already launched.
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
        sys.exit(error.get_first_failure()[1].exitcode)  # the process has already printed its error
    return True
