"""One hash for a whole data set: it pins raw data that DVC does not track."""

import hashlib
from collections.abc import Iterable

from stages.dataset.files import read_raw
from stages.dataset.source import DataSet, RawFile
from stages.runtime.progress import track


def manifest_sha256(data: DataSet) -> str:
    """The hash of every file that `prepare` would read.

    Raises:
        OSError: a file cannot be read.
    """
    assert data.root is not None, "made data has no files"
    names = {
        name for item in (*data.train, *data.val) for name in (item.source, item.labels) if name is not None
    }
    root = data.root
    files = (read_raw(root, name)[0] for name in track(sorted(names), "hash", unit="file"))
    return hash_files((*files, *data.other_files))


def hash_files(files: Iterable[RawFile]) -> str:
    """sha256 over the sorted lines `name, size in bytes, sha256`, one for each file."""
    lines = sorted({f"{file.name}, {file.size_bytes}, {file.sha256}\n" for file in files})
    return hashlib.sha256("".join(lines).encode()).hexdigest()
