"""Multi-process launch of a script: by `runtime.nproc` on this machine, or by `runtime.launcher`."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stages.runtime.pool import count_cores
from stages.settings.errors import UserError
from stages.settings.section import Runtime


def launch(module: str, argv: Sequence[str], runtime: Runtime, device: str) -> bool:
    """Run a script in several processes and wait for them to finish.

    If a process ends with an error, the others are ended and so does this one; the error is in the log.

    Args:
        module: module name of the script, as for `python -m`.
        argv: command-line arguments of the script.
        runtime: `nproc`, where 0 means one per GPU, or one on the CPU; or `launcher`.
        device: `device` of params.yaml.

    Returns:
        True if it launched processes; False if one process suffices or this process was already launched.

    Raises:
        UserError: the launcher cannot be run.
    """
    if "WORLD_SIZE" in os.environ:
        return False
    if runtime.launcher:
        _run([*shlex.split(runtime.launcher), "-m", module, *argv])
        return True
    num_processes = runtime.nproc
    if num_processes == 0:
        num_processes = max(1, torch.cuda.device_count()) if device in ("auto", "cuda") else 1
    if num_processes == 1:
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


def _run(command: Sequence[str]) -> None:
    try:
        ended = subprocess.run(command, check=False)
    except OSError as error:
        raise UserError(
            f"params.yaml: runtime.launcher: {command[0]} cannot be run ({error.strerror}); set it to a "
            "command such as torchrun, or to '' for the processes of runtime.nproc"
        ) from error
    if ended.returncode:
        sys.exit(ended.returncode)  # the process that failed has already printed its error
