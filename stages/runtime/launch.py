"""Multi-process launch of a script: by `runtime.nproc` on this machine, or by `runtime.launcher`."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stages.runtime.pool import count_cores
from stages.settings.errors import UserError
from stages.settings.section import Runtime

KILLED = 128  # plus the signal's number: exit code of shells for a process that a signal ended


def launch(module: str, argv: Sequence[str], runtime: Runtime, device: str) -> bool:
    """Run a script in several processes and wait for them to finish.

    If a process ends with an error, the others are ended and so does this one; the error is in the log. If a
    signal ends this one, it ends the others first.

    Args:
        module: module name of the script, as for `python -m`.
        argv: command-line arguments of the script.
        runtime: `nproc`, where 0 means one per GPU, or one on the CPU; or `launcher`.
        device: `device` of params.yaml.

    Returns:
        True if it launched processes; False if one process suffices or this process was already launched.

    Raises:
        UserError: the launcher cannot be run.
        KeyboardInterrupt: on SIGINT; SIGTERM exits.
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
    except SignalException as error:  # torch has ended the processes
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        sys.exit(KILLED + error.sigval)
    return True


def _run(command: Sequence[str]) -> None:
    """Run the launcher; whatever ends this process ends the launcher first, which ends its processes."""
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        code = _wait(subprocess.Popen(command))
    except OSError as error:
        raise UserError(
            f"params.yaml: runtime.launcher: {command[0]} cannot be run ({error.strerror}); set it to a "
            "command such as torchrun, or to '' for the processes of runtime.nproc"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, previous)
    if code:
        sys.exit(code)  # the process that failed has already printed its error


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()  # without a limit: a launcher that is killed leaves its processes running
        raise


def _exit(number: int, frame: object) -> NoReturn:
    sys.exit(KILLED + number)
