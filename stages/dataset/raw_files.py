"""The raw files as they were pinned: names, sizes, times and hashes, and what is different now.

`make preset` and `make pin` write the listing. It lies in .state, which DVC and git leave alone, so it is
there when DVC has deleted the outputs of `prepare`. It decides nothing: without it, every file is read again.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages.core.atomic import atomic_path
from stages.core.hashes import FINGERPRINT_DIGITS
from stages.core.repository import EXPERIMENT, in_repository
from stages.dataset.left_out import MOST_EXAMPLES, printable
from stages.dataset.source import DataSet, RawFile, hash_files, is_unchanged, read_raw
from stages.runtime.progress import track
from stages.settings.errors import UserError, listed

LISTING = Path(".state/raw_files.csv")
NUM_THREADS = 8  # disks and network drives serve several readers faster than one


@dataclass(frozen=True)
class Difference:
    """Names of the files that differ between two listings, sorted.

    Attributes:
        added: of contents that are new, or there once more.
        gone: of contents that are gone, or there once less.
        changed: names that are in both, with another content.
        renamed: the old and the new name of a content.
    """

    added: tuple[str, ...]
    gone: tuple[str, ...]
    changed: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...] = ()

    @classmethod
    def between(cls, before: Iterable[RawFile], now: Iterable[RawFile]) -> "Difference":
        """Compare names and contents."""
        old, new = ({file.name: file.sha256 for file in files} for files in (before, now))
        added, gone = sorted(set(new) - set(old)), sorted(set(old) - set(new))
        moved = defaultdict[str, list[str]](list)  # new names by content, the first last
        for name in reversed(added):
            moved[new[name]].append(name)
        renamed = {name: moved[old[name]].pop() for name in gone if moved[old[name]]}
        taken = set(renamed.values())
        return cls(
            tuple(name for name in added if name not in taken),
            tuple(name for name in gone if name not in renamed),
            tuple(sorted(name for name in set(old) & set(new) if old[name] != new[name])),
            tuple(renamed.items()),
        )

    def __str__(self) -> str:
        kinds: dict[str, tuple[str, ...]] = {"added": self.added, "gone": self.gone, "changed": self.changed}
        if self.renamed:
            kinds["renamed"] = tuple(f"{old} to {new}" for old, new in self.renamed)
        parts = (
            f"{len(names):,} {what}"
            + (f" ({listed(list(map(printable, names)), MOST_EXAMPLES)})" if names else "")
            for what, names in kinds.items()
        )
        return ", ".join(parts)


def hash_names(root: Path, names: Iterable[str], known: Mapping[str, RawFile]) -> dict[str, RawFile]:
    """Hash files; those in `known` of the same size and modification time are not read again.

    Files that cannot be read are left out: `prepare` names them.

    Args:
        root: folder of the data set.
        names: paths relative to it.
        known: files that were hashed before, by name.
    """
    wanted = sorted(set(names))
    same = {name: known[name] for name in wanted if name in known and is_unchanged(root, known[name])}
    unread = [name for name in wanted if name not in same]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(partial(_hash_one, root), unread)
        return same | {
            file.name: file for file in track(found, "hash", total=len(unread), unit="file") if file
        }


def _hash_one(root: Path, name: str) -> RawFile | None:
    try:
        return read_raw(root, name)[0]
    except (OSError, UserError):
        return None


def raw_files(data: DataSet) -> tuple[RawFile, ...]:
    """Every file that `prepare` can read, with its hash: images, label maps, lists and class files."""
    assert data.root is not None, "generated data has no files"
    names = {
        name for item in (*data.train, *data.val) for name in (item.source, item.labels) if name is not None
    }
    left = names - set(data.hashed)
    others = hash_names(data.root, left, known_files(data.root)) if left else {}
    return (*data.hashed.values(), *others.values(), *data.other_files)


def _path() -> Path:
    return in_repository(LISTING)


def write_listing(root: Path, files: Iterable[RawFile]) -> None:
    """Store the listing of the pinned files."""
    with atomic_path(_path()) as temporary, temporary.open("w", newline="", errors="surrogateescape") as out:
        lines = csv.writer(out)
        lines.writerow([os.path.realpath(root)])
        for file in files:
            lines.writerow([file.name, file.size_bytes, file.sha256, file.modified_ns])


def _read_listing() -> tuple[str, tuple[RawFile, ...]]:
    """Folder and files of the stored listing; empty if there is none that can be read."""
    try:
        with _path().open(newline="", errors="surrogateescape") as stored:
            (root,), *rows = csv.reader(stored)
        return root, tuple(RawFile(name, int(size), sha, int(time)) for name, size, sha, time in rows)
    except (FileNotFoundError, ValueError):
        return "", ()


def known_files(root: Path) -> dict[str, RawFile]:
    """The stored listing by name, if it is of this folder; else empty."""
    stored, files = _read_listing()
    return {file.name: file for file in files} if stored == os.path.realpath(root) else {}


def pinned_files(manifest: str) -> tuple[RawFile, ...]:
    """The files that are pinned as `manifest`, if the stored listing is theirs; else empty."""
    _, files = _read_listing()
    return files if hash_files(files) == manifest else ()


def check_manifest(pinned: str, files: Iterable[RawFile]) -> None:
    """Compare the files of a data set with those that are pinned.

    Args:
        pinned: `prepare.manifest_sha256`; '' accepts any files.
        files: all files that `prepare` can read.

    Raises:
        UserError: files were added, removed or changed; with their numbers, if the listing is there.
    """
    now = tuple(files)
    if not pinned or (found := hash_files(now)) == pinned:
        return
    before = pinned_files(pinned)
    numbers = f": {Difference.between(before, now)}" if before else ""
    of_experiment = ""
    if EXPERIMENT in os.environ:
        of_experiment = (
            "; if a setting of this experiment alone chooses other files, set prepare.manifest_sha256 to '' "
            "with it"
        )
    raise UserError(
        f"prepare.manifest_sha256: files have changed{numbers}; accept the files as they "
        f"are with `make pin`, or restore them (pinned {pinned[:FINGERPRINT_DIGITS]}, found "
        f"{found[:FINGERPRINT_DIGITS]}){of_experiment}"
    )
