"""segment.json: which files of an output folder are segment's own, of which model, and what is done.

While segment runs, what it writes is noted in a journal beside segment.json, image by image, so that nothing
is lost by a kill. The end of a run, also by an error, moves the journal into segment.json.

A file that was changed after segment has written it, such as a label map corrected by hand, is no longer its
own. No file that is not its own is ever replaced.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core.artefacts import named_faults, read_json, write_csv, write_text
from stages.dataset.own_outputs import JOURNAL, MANIFEST, WRITER, modified_ns, read_journal, read_manifest
from stages.settings.errors import UserError
from stages.tools.segmenting.label_files import output_names
from stages.tools.segmenting.photographs import Photographs

MOST_INDENTED = 10_000  # files; a larger segment.json is written on one line
LEGEND, TABLE = "legend.json", "manifest.csv"


@dataclass(frozen=True)
class Done:
    """An image that was segmented.

    Attributes:
        size_bytes: of the photograph.
        modified_ns: likewise.
        bits: bits of 16-bit channels that were in use; 0 without such images.
        width: px, as displayed.
        height: likewise.
        confidence: mean over the pixels, 0 to 1.
        shares: share of the pixels, 0 to 1, of each cluster id; in text, as JSON has it.
    """

    size_bytes: int
    modified_ns: int
    bits: int
    width: int
    height: int
    confidence: float
    shares: Mapping[str, float]

    def is_of(self, photograph: Path, bits: int) -> bool:
        """Whether it is of this version of the photograph."""
        state = photograph.stat()
        return (self.size_bytes, self.modified_ns, self.bits) == (state.st_size, state.st_mtime_ns, bits)


@dataclass
class RunManifest:
    """What segment.json says.

    Attributes:
        out: output folder.
        made_by: model and options; what was done with others is not taken over.
        files: modification time in ns of each file, as segment has written it.
        images: what is done, by name.
    """

    out: Path
    made_by: Mapping[str, str]
    files: dict[str, int] = field(default_factory=dict)
    images: dict[str, Done] = field(default_factory=dict)

    def has(self, name: str, photograph: Path, outputs: Sequence[str], bits: int) -> bool:
        """Whether an image needs nothing: it is the same as it was, and all of its outputs are there."""
        done = self.images.get(name)
        is_whole = all(one in self.files and (self.out / one).is_file() for one in outputs)
        try:
            return done is not None and is_whole and done.is_of(photograph, bits)
        except OSError:  # it is named when it is opened
            return False

    def is_own(self, name: str) -> bool:
        """Whether a file is there as segment has written it."""
        return name in self.files and self.files[name] == modified_ns(self.out / name)

    def is_current(self, name: str, root: Path) -> bool:
        """Whether photograph and label map of an image that is done are there."""
        mask = output_names(name, scores=False)[0]
        return (root / name).is_file() and (self.out / mask).is_file()

    def take(self, written: Path, name: str) -> None:
        """Move a finished file to its place in the output folder.

        The journal has it before it is there, so that a kill leaves no file whose origin is unknown.
        """
        target, time = self.out / name, written.stat().st_mtime_ns
        self._note({"file": name, "modified_ns": time})
        with named_faults(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(written, target)
        self.files[name] = time

    def drop(self, name: str) -> None:
        """Delete a file of an earlier result of an image, if it is segment's own."""
        if self.is_own(name):
            (self.out / name).unlink()
            del self.files[name]

    def add(self, name: str, done: Done) -> None:
        """Take over an image whose files are in place."""
        self._note({"image": name, "done": asdict(done)})
        self.images[name] = done

    def _note(self, line: Mapping[str, object]) -> None:
        path = self.out / JOURNAL
        with named_faults(path), path.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write segment.json, which replaces the journal."""
        content = {
            "written_by": WRITER,
            "made_by": self.made_by,
            "files": dict(sorted(self.files.items())),
            "images": {name: asdict(done) for name, done in sorted(self.images.items())},
        }
        indent = 2 if len(self.files) <= MOST_INDENTED else None
        write_text(self.out / MANIFEST, json.dumps(content, indent=indent, allow_nan=False) + "\n")
        (self.out / JOURNAL).unlink(missing_ok=True)


def begin(
    out: Path,
    photographs: Photographs,
    made_by: Mapping[str, str],
    extra: Sequence[str],
    *,
    bits: int,
    scores: bool,
    overwrite: bool,
) -> tuple[RunManifest, list[str]]:
    """Go on with an earlier run, or begin a new one.

    Args:
        out: output folder.
        photographs: images to segment.
        made_by: model and options, in words.
        extra: files for all images together, which are always written anew.
        bits: bits of 16-bit channels that the images use; 0 without such images.
        scores: whether maps of confidence are written.
        overwrite: replace own files of another model or other options, and do everything again.

    Returns:
        The manifest, and the names of the images that are yet to be done.

    Raises:
        UserError: a file would be replaced that is not segment's own, or an own one without `overwrite`.
    """
    own = read_manifest(out)
    before = {} if own is None else read_json(out / MANIFEST)
    earlier = before.get("made_by", {})  # an older version has written none
    other = [f"another {key}" for key in made_by if earlier.get(key) != made_by[key]]
    images = {} if other else _images(out, before)
    outputs = {name: output_names(name, scores=scores) for name in photographs.names}
    manifest = RunManifest(out, made_by, own or {}, images)
    # Label maps of images that this run leaves out in favor of others, which have outputs of these names.
    others = {output_names(name, scores=False)[0] for name in images if name not in outputs}
    root = photographs.root
    todo = [
        one
        for one in outputs
        if overwrite
        or not others.isdisjoint(outputs[one])
        or not manifest.has(one, root / one, outputs[one], bits)
    ]
    written = [*extra, *(one for name in todo for one in outputs[name])]
    present = [name for name in written if os.path.lexists(out / name)]
    foreign = [name for name in present if not manifest.is_own(name)]
    if own is None and os.path.lexists(out / MANIFEST):
        foreign.append(MANIFEST)
    _check(out, foreign, present, [] if overwrite else other)
    if (out / JOURNAL).exists():  # it goes with `earlier`, and must not be read with what this run is made by
        RunManifest(out, earlier, manifest.files, images).save()
    lost = set(written)
    manifest.images = {
        name: done for name, done in images.items() if not lost & set(output_names(name, scores=False))
    }
    manifest.save()
    return manifest, todo


def _check(out: Path, foreign: Sequence[str], present: Sequence[str], other: Sequence[str]) -> None:
    """Refuse to replace files that are foreign, or that are present and made with something other.

    Raises:
        UserError: there are any.
    """
    if foreign:
        raise UserError(
            f"{out}: has {len(foreign):,} files that segment would replace but has not written, or that were "
            f"changed since ({', '.join(foreign[:3])}); choose another folder with --out"
        )
    if present and other:
        raise UserError(
            f"{out}: has {len(present):,} files of a run with {', '.join(other)} "
            f"({', '.join(present[:3])}); pass --overwrite to replace them, or choose another folder "
            "with --out"
        )


def _images(out: Path, before: Mapping[str, Any]) -> dict[str, Done]:
    """What is done, by segment.json and the journal."""
    done = before.get("images", {}) | {
        line["image"]: line["done"] for line in read_journal(out) if "image" in line
    }
    return {name: Done(**values) for name, values in done.items()}


def shares(ids: np.ndarray) -> dict[str, float]:
    """Share of the pixels of each id that occurs; counted row by row, as numpy makes int64 of the ids."""
    counts = np.zeros(1 << 8, np.int64)
    for row in ids:
        counts += np.bincount(row, minlength=len(counts))
    return {str(one): round(float(counts[one] / ids.size), 6) for one in np.flatnonzero(counts)}


def write_table(path: Path, manifest: RunManifest, names: Sequence[str], labels: Mapping[int, str]) -> None:
    """Write manifest.csv: a row for each image, with the share of each label.

    Args:
        path: file to write.
        manifest: of the run.
        names: images, in the order of the rows.
        labels: a unique name for each id that masks may have.
    """
    columns = {one: f"share of {label}" for one, label in labels.items()}
    rows = []
    for name in names:
        done = manifest.images[name]
        row = {
            "source": name,
            "mask": output_names(name, scores=False)[0],
            "width": done.width,
            "height": done.height,
            "confidence": done.confidence,
        }
        rows.append(row | {column: done.shares.get(str(one), 0.0) for one, column in columns.items()})
    first = ["source", "mask", "width", "height", "confidence"]
    write_csv(path, pd.DataFrame(rows, columns=[*first, *columns.values()]))
