"""One hash for a whole data set: it pins raw data that DVC does not track."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from stages.dataset.folder import list_folder
from stages.dataset.source import RawFile
from stages.runtime.progress import track


def manifest_sha256(root: Path) -> str:
    """The hash of every file that `prepare` would read from the folder data set at `root`.

    Raises:
        UserError: `root` is no folder data set, by the names of its files.
    """
    data = list_folder(root)
    names = [
        name for item in (*data.train, *data.val) for name in (item.source, item.labels) if name is not None
    ]
    files = (_read(root, name) for name in track(names, "hash", total=len(names), unit="file"))
    return hash_files((*files, *data.other_files))


def hash_files(files: Iterable[RawFile]) -> str:
    """sha256 over the sorted lines `name, size in bytes, sha256`, one for each file."""
    lines = sorted(f"{file.name}, {file.size_bytes}, {file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read(root: Path, name: str) -> RawFile:
    with (root / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return RawFile(name, (root / name).stat().st_size, digest)
