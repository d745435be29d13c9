"""Which files of a folder `segment` has written, by its manifest and its journal."""

import json
from pathlib import Path
from typing import Any

MANIFEST = "segment.json"  # in a folder that `segment` has written: the names of its files
JOURNAL = "segment.jsonl"  # beside it while `segment` runs, or after a kill: what was written since
WRITER = "fs4 segment"  # value of the key `written_by` of a manifest


def own_outputs(folder: Path) -> frozenset[str]:
    """Names of the files in a folder that `segment` has written; the manifest lies here or further up."""
    for above in (folder, *folder.parents):
        if (above / MANIFEST).is_file():
            inside = folder.relative_to(above)
            written = map(Path, read_manifest(above) or ())
            return frozenset(path.name for path in written if path.parent == inside)
    return frozenset()


def read_manifest(folder: Path) -> dict[str, int] | None:
    """The files that `segment` has written, relative to the folder, with their modification time in ns.

    None if the folder has no manifest of `segment`.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["written_by"] != WRITER:
            return None
        files = {name: time for name, time in content["files"].items() if time is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    for line in read_journal(folder):
        if "file" in line:
            name, time = line["file"], line["modified_ns"]
            # A line is written just before its file is in place; after a kill in between, the old one is.
            if name not in files or modified_ns(folder / name) == time:
                files[name] = time
    return files


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
