"""segment.json: which files of an output folder are segment's own, of which model, and what is done.

A file that was changed after segment has written it, such as a label map corrected by hand, is no longer its
own. No file that is not its own is ever replaced.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from stages.core.artefacts import read_json, write_csv, write_json
from stages.dataset.listing import MANIFEST, WRITER, read_manifest
from stages.settings.errors import UserError
from stages.tools.segmenting.label_files import output_names
from stages.tools.segmenting.photographs import Photographs

SAVE_SECONDS = 10.0  # at most so much work is done again after a kill
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
        files: modification time in ns of each own file; None for files that are yet to be written.
        images: what is done, by name.
    """

    out: Path
    made_by: Mapping[str, str]
    files: dict[str, int | None] = field(default_factory=dict)
    images: dict[str, Done] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic)

    def has(self, name: str, photograph: Path, outputs: Sequence[str], bits: int) -> bool:
        """Whether an image needs nothing: it is the same as it was, and all of its outputs are there."""
        done = self.images.get(name)
        is_whole = all(self.files.get(one) is not None and (self.out / one).is_file() for one in outputs)
        try:
            return done is not None and is_whole and done.is_of(photograph, bits)
        except OSError:  # it is named when it is opened
            return False

    def add(self, name: str, done: Done, outputs: Sequence[str]) -> None:
        """Take over an image; saves at times."""
        self.images[name] = done
        for output in outputs:
            self.files[output] = (self.out / output).stat().st_mtime_ns
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write segment.json."""
        content = {
            "written_by": WRITER,
            "made_by": self.made_by,
            "files": dict(sorted(self.files.items())),
            "images": {name: asdict(done) for name, done in sorted(self.images.items())},
        }
        write_json(self.out / MANIFEST, content)
        self._saved = time.monotonic()


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
    """Go on with an earlier run, or begin a new one; write down which files will be its own.

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
    outputs = {name: output_names(name, scores=scores) for name in photographs.names}
    planned = [*extra, *(one for names in outputs.values() for one in names)]
    present = [name for name in planned if os.path.lexists(out / name)]
    foreign = [name for name in present if not _is_own(out / name, name, own)]
    if not own and os.path.lexists(out / MANIFEST):
        foreign.append(MANIFEST)
    if foreign:
        raise UserError(
            f"{out}: has {len(foreign):,} files that segment would replace but has not written, or that were "
            f"changed since ({', '.join(foreign[:3])}); choose another folder with --out"
        )
    manifest = RunManifest(out, made_by, dict(own))
    if present and not overwrite:
        before = read_json(out / MANIFEST)
        earlier = before.get("made_by", {})  # an older version has written none
        if other := [f"another {key}" for key in made_by if earlier.get(key) != made_by[key]]:
            raise UserError(
                f"{out}: has {len(present):,} files of a run with {', '.join(other)} "
                f"({', '.join(present[:3])}); pass --overwrite to replace them, or choose another folder "
                "with --out"
            )
        manifest.images = {name: Done(**done) for name, done in before["images"].items()}
    root = photographs.root
    todo = [one for one in photographs.names if not manifest.has(one, root / one, outputs[one], bits)]
    for name in todo:
        manifest.images.pop(name, None)
    # Before the first file, so that after a kill all files of the run are known to be its own.
    manifest.files.update(dict.fromkeys([*extra, *(one for name in todo for one in outputs[name])]))
    manifest.save()
    return manifest, todo


def _is_own(path: Path, name: str, own: Mapping[str, int | None]) -> bool:
    return name in own and own[name] in (None, path.lstat().st_mtime_ns)


def shares(ids: np.ndarray) -> dict[str, float]:
    """Share of the pixels of each id that occurs."""
    counts = np.bincount(ids.ravel())
    return {str(one): round(float(counts[one] / ids.size), 6) for one in np.flatnonzero(counts)}


def write_table(manifest: RunManifest, names: Sequence[str], labels: Mapping[int, str]) -> None:
    """Write manifest.csv: a row for each image, with the share of each label.

    Args:
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
    write_csv(manifest.out / TABLE, pd.DataFrame(rows, columns=[*first, *columns.values()]))
