"""Multi-process launch of a script: by `runtime.nproc` on this machine, or by `runtime.launcher`."""

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stages.core.launched import is_launched
from stages.runtime.pool import count_cores
from stages.settings.errors import UserError
from stages.settings.section import Runtime

KILLED = 128  # plus the signal's number: exit code of shells for a process that a signal ended
PATIENCE_SECONDS = 60  # torchrun gives its processes 30 s to end
PR_SET_PDEATHSIG = 1  # of Linux, from prctl.h
LIBC = ctypes.CDLL(None)
ENDED_BY: dict[int, str] = {  # what most often ends a process without a word of its own
    signal.SIGKILL: ", as by the system when memory runs out",
    signal.SIGABRT: ", as by NCCL when another process does not answer for runtime.timeout_seconds",
}


def launch(module: str, argv: Sequence[str], runtime: Runtime, device: str) -> bool:
    """Run a script in several processes and wait for them to finish.

    If a process ends with an error, the others are ended and so does this one; the error is in the log. If a
    signal ends this one, it ends the others first. A launched process ends with the one that started it.

    Args:
        module: module name of the script, as for `python -m`.
        argv: command-line arguments of the script.
        runtime: `nproc`, where 0 means one per GPU, or one on the CPU; or `launcher`.
        device: `device` of params.yaml.

    Returns:
        True if it launched processes; False if one process suffices or this process was already launched.

    Raises:
        UserError: the launcher cannot be run, or was killed; or as `is_launched`.
        KeyboardInterrupt: on SIGINT; SIGTERM exits.
    """
    if is_launched():
        _end_with_parent()
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
        logs_specs=DefaultLogsSpecs(os.devnull),  # logs go to the terminal; else empty folders stay
    )
    try:
        elastic_launch(local, sys.executable)("-m", module, *argv)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code < 0:  # it could print nothing
            raise UserError(
                f"a process was ended by {_signal_name(-code)}{ENDED_BY.get(-code, '')}; the "
                "messages above may say more; run `dvc repro` again to go on"
            ) from error
        sys.exit(code)  # the process has already printed its error
    except SignalException as error:  # torch has ended the processes
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        sys.exit(KILLED + error.sigval)
    return True


def _signal_name(number: int) -> str:
    """Such as SIGKILL; most real-time signals have no name."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _run(command: Sequence[str]) -> None:
    """Run the launcher; whatever ends this process ends the launcher first, which ends its processes."""
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        code = _wait(
            # A process group of its own holds all that it starts on this host, except what torchrun starts.
            subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_parent)
        )
    except OSError as error:
        raise UserError(
            f"params.yaml: runtime.launcher: {command[0]} cannot be run ({error.strerror}); set it to a "
            "command such as torchrun, or to '' for the processes of runtime.nproc"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, previous)
    if code < 0:
        raise UserError(
            f"params.yaml: runtime.launcher: {command[0]} was ended by {_signal_name(-code)}; "
            "run `dvc repro` again to go on"
        )
    if code:
        sys.exit(code)  # the process that failed has already printed its error


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()  # without a limit: a launcher that is killed leaves its processes running
        raise
    finally:
        _end_group(process.pid)


def _end_group(group: int) -> None:
    """End what a launcher that was killed has left."""
    end = time.monotonic() + PATIENCE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < end:
            time.sleep(0.1)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)


def _end_with_parent() -> None:
    """Let the kernel end this process when its parent has ended, even if that was killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _exit(number: int, frame: object) -> NoReturn:
    sys.exit(KILLED + number)
