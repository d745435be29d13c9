"""Hard links, where the file system has them."""

import errno
import os
import shutil
from pathlib import Path

NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # other disk, or no hard links


def link(source: Path, target: Path) -> None:
    """Create a hard link to a file, or a copy if the file system does not support it."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(source, target)
