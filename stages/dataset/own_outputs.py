"""Which files of a folder `segment` has written, by its manifest and its journal."""

import json
import os
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.hashes import file_sha256

MANIFEST = "segment.json"  # in a folder that `segment` has written: the names of its files
JOURNAL = "segment.jsonl"  # beside it while `segment` runs, or after a kill: what was written since
WRITER = "fs4 segment"  # value of the key `written_by` of a manifest


@dataclass(frozen=True)
class Written:
    """A file as `segment` has written it.

    Attributes:
        modified_ns: modification time.
        sha256: hash of the content; empty in a manifest of an earlier version.
    """

    modified_ns: int
    sha256: str = ""

    def is_at(self, path: Path) -> bool:
        """Whether the file is there; a copy of a folder has other times, and the same content."""
        time = modified_ns(path)
        if time is None or time == self.modified_ns:
            return time is not None
        try:
            return bool(self.sha256) and path.is_file() and file_sha256(path) == self.sha256
        except OSError:  # what this user may not read, another has changed
            return False


class OwnOutputs:
    """The files that `segment` has written; it is for one listing, in which it reads each manifest once."""

    def __init__(self) -> None:
        self._manifests: dict[Path, Path | None] = {}  # for each folder, the one whose manifest counts for it
        self._names: dict[Path, Mapping[str, frozenset[str]]] = {}  # for each manifest, by folder below it

    def inside(self, folder: Path) -> frozenset[str]:
        """Names of the files in a folder that `segment` has written; the manifest is there or further up."""
        ways = {os.path.abspath(folder), os.path.realpath(folder)}  # links may lead to outputs, or from them
        return frozenset().union(*(self._by_way(Path(way)) for way in ways))

    def _by_way(self, folder: Path) -> frozenset[str]:
        above = self._nearest(folder)
        if above is None:
            return frozenset()
        if above not in self._names:
            real = Path(os.path.realpath(above))
            if real not in self._names:
                self._names[real] = _by_folder(read_manifest(real) or ())
            self._names[above] = self._names[real]
        return self._names[above].get(folder.relative_to(above).as_posix(), frozenset())

    def _nearest(self, folder: Path) -> Path | None:
        """The nearest folder with a manifest: this one, or one further up."""
        if folder not in self._manifests:
            if (folder / MANIFEST).is_file():
                self._manifests[folder] = folder
            else:
                self._manifests[folder] = None if folder == folder.parent else self._nearest(folder.parent)
        return self._manifests[folder]


def _by_folder(files: Iterable[str]) -> dict[str, frozenset[str]]:
    """Names of files by the folder that they are in; "." is the folder of the manifest."""
    names: dict[str, list[str]] = {}
    for file in files:
        folder, name = posixpath.split(file)
        names.setdefault(folder or ".", []).append(name)
    return {folder: frozenset(some) for folder, some in names.items()}


def read_manifest(folder: Path) -> dict[str, Written] | None:
    """The files that `segment` has written, relative to the folder.

    None if the folder has no manifest of `segment`.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["written_by"] != WRITER:
            return None
        files = {name: _written(entry) for name, entry in content["files"].items() if entry is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    for line in read_journal(folder):
        if "file" in line:
            name, written = line["file"], Written(line["modified_ns"], line.get("sha256", ""))
            # A line is written just before its file is in place; after a kill in between, the old one is.
            if name not in files or written.is_at(folder / name):
                files[name] = written
    return files


def _written(entry: Any) -> Written:
    """An entry of a manifest; earlier versions have written the time alone."""
    return Written(entry) if isinstance(entry, int) else Written(entry["modified_ns"], entry["sha256"])


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The lines of the journal; a last line that a kill has cut off is left out. Empty without a journal."""
    try:
        text = (folder / JOURNAL).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def modified_ns(path: Path) -> int | None:
    """Modification time, or None if there is no such file; a link is not followed."""
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return None
