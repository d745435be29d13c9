"""Locks on files: the kernel releases them when their process ends, however it ends."""

import errno
import fcntl
from typing import IO, Any

from stages.runtime.progress import warn

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what disks answer that have none


def try_lock(file: IO[Any], who: str) -> bool:
    """Lock an open file until it is closed; if its disk has no locks, warn and go on.

    Args:
        file: open for writing, which network drives require.
        who: name of the stage or tool, for the warning.

    Returns:
        False if another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        warn(
            who,
            f"{file.name}: its disk has no locks ({error.strerror}), so runs do not notice each other; "
            "start one at a time",
        )
    return True
