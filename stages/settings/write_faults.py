"""What to say of a file that cannot be written: disk full or gone, no right to write, or one in the way."""

import errno
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GONE = (errno.EIO, errno.ESTALE, errno.ENOTCONN)  # as of a network drive
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
IN_THE_WAY = {errno.ENOTDIR: "file", errno.EEXIST: "file", errno.EISDIR: "folder"}


def write_fault(path: Path, error: OSError) -> str | None:
    """What is wrong and its remedy; None if the error is of another kind.

    Args:
        path: what was to be written.
        error: what happened.
    """
    failed = f"{path}: cannot be written"
    if error.errno in FULL:
        return f"{failed} ({error.strerror}); free space on its disk and run the same command again"
    if (found := _in_the_way(error)) is not None:
        kind = "folder" if found.is_dir() else "file"
        return f"{failed}, because {found} is a {kind}; choose another place, or move that {kind} away"
    if error.errno in GONE:
        return f"{failed} ({error.strerror}); look whether its disk is still there, or choose another place"
    if error.errno in FORBIDDEN:
        return f"{failed} ({error.strerror}); allow this user to write there and run the same command again"
    return None


def _in_the_way(error: OSError) -> Path | None:
    """The file where a folder should be, or the folder where a file should be."""
    name = error.filename2 or error.filename
    if error.errno not in IN_THE_WAY or name is None:
        return None
    found = next(one for one in (Path(name), *Path(name).parents) if one.exists())
    return found if found.is_dir() == (IN_THE_WAY[error.errno] == "folder") else None
