"""Whether a process is one of several that torchrun has started, and which."""

import os

from stages.settings.errors import UserError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def is_launched() -> bool:
    """Whether torchrun has started this process.

    Raises:
        UserError: only some of its variables are set, as where the script of a job exports them for programs
            of another kind.
    """
    there = [name for name in VARIABLES if name in os.environ]
    if there and len(there) < len(VARIABLES):
        absent = [name for name in VARIABLES if name not in there]
        raise UserError(
            f"the environment has {', '.join(there)} but not {', '.join(absent)}, so this is no process of "
            "torchrun; for one process, or those of runtime.nproc and runtime.launcher: unset "
            f"{' '.join(there)}"
        )
    return bool(there)


def rank() -> int | None:
    """Number of this process among those that torchrun has started; None where it has not started it.

    Where only some of the variables are set, this is None, and a script can print the error of `is_launched`.
    """
    return int(os.environ["RANK"]) if all(name in os.environ for name in VARIABLES) else None
