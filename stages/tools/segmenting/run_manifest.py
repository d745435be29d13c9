"""segment.json: which files of an output folder are segment's own, of which model, and what is done.

While segment runs, what it writes is noted in a journal beside segment.json, image by image, so that nothing
is lost by a kill. The end of a run, also by an error, moves the journal into segment.json.

A file whose content was changed after segment has written it, such as a label map corrected by hand, is no
longer its own. No file that is not its own is ever replaced.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from stages.core.artefacts import write_csv, write_text
from stages.core.atomic import named_faults
from stages.core.hashes import file_sha256
from stages.dataset.own_outputs import JOURNAL, MANIFEST, WRITER, Written, modified_ns
from stages.tools.segmenting.label_files import output_names
from stages.tools.segmenting.reading_back import count_ids

MOST_INDENTED = 10_000  # files; a larger segment.json is written on one line
LEGEND, TABLE = "legend.json", "manifest.csv"
MODEL, FOLDER = "model", "folder of photographs"  # keys of `made_by`
FEATURES = "choice of predict.mirror and predict.unit_features"  # likewise; empty for the usual one


@dataclass(frozen=True)
class Done:
    """An image that was segmented.

    Attributes:
        size_bytes: of the photograph.
        modified_ns: likewise.
        bits: bits of 16-bit channels that were in use; 0 if it has none.
        width: px, as displayed.
        height: likewise.
        confidence: mean over the pixels, 0 to 1.
        shares: share of the pixels, 0 to 1, of each cluster id; in text, as JSON has it.
        clusters: of a corrected label map that a run with another model has kept: fingerprint of the
            clusters whose ids it has; otherwise empty.
        colours: of one that a run with other colors has kept: CSS colors that it was written with; otherwise
            empty.
    """

    size_bytes: int
    modified_ns: int
    bits: int
    width: int
    height: int
    confidence: float
    shares: Mapping[str, float]
    clusters: str = ""
    colours: Sequence[str] = ()

    def is_of(self, photograph: Path) -> bool:
        """Whether it is of this version of a photograph; not if that cannot be found."""
        try:
            state = photograph.stat()
        except OSError:  # it is named when it is opened
            return False
        return (self.size_bytes, self.modified_ns) == (state.st_size, state.st_mtime_ns)


@dataclass
class RunManifest:
    """What segment.json says.

    Attributes:
        out: output folder.
        made_by: model and options; what was done with others is not taken over.
        colours: CSS color of each cluster id.
        files: each file, as segment has written it.
        images: what is done, by name.
    """

    out: Path
    made_by: Mapping[str, str]
    colours: Sequence[str]
    files: dict[str, Written] = field(default_factory=dict)
    images: dict[str, Done] = field(default_factory=dict)
    # Modification times of files that were read and found changed, so that they are not read again.
    _changed: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def has(self, name: str, photograph: Path, outputs: Sequence[str], bits: int) -> bool:
        """Whether an image needs nothing: it is the same as it was, and all of its outputs are there."""
        done = self.images.get(name)
        is_whole = all(one in self.files and (self.out / one).is_file() for one in outputs)
        return done is not None and is_whole and done.bits in (0, bits) and done.is_of(photograph)

    def is_own(self, name: str) -> bool:
        """Whether a file is there as segment has written it; a copy of it counts, and is read once."""
        time, written = modified_ns(self.out / name), self.files.get(name)
        if time is None or written is None or self._changed.get(name) == time:
            return False
        if written.is_at(self.out / name):
            self.files[name] = replace(written, modified_ns=time)
            return True
        self._changed[name] = time
        return False

    def is_changed(self, name: str) -> bool:
        """Whether a file is there that segment has written and that was changed since."""
        return name in self.files and modified_ns(self.out / name) is not None and not self.is_own(name)

    def is_current(self, name: str, root: Path) -> bool:
        """Whether photograph and label map of an image that is done are there."""
        mask = output_names(name, scores=False)[0]
        return (root / name).is_file() and (self.out / mask).is_file()

    def take_all(self, folder: Path, written: Mapping[str, Written]) -> list[str]:
        """Move finished files from a folder to their places; `written` has their names, as of `written_in`.

        The journal has them before they are there, so that neither a kill nor a loss of power leaves a file
        whose origin is unknown.

        Returns:
            Those that are not moved, because they were changed where they are.
        """
        changed = [name for name in written if self.is_changed(name)]
        own = {name: one for name, one in written.items() if name not in changed}
        self._note(*({"file": name, **asdict(one)} for name, one in own.items()), is_synced=True)
        for name, one in own.items():
            target = self.out / name
            with named_faults(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / name, target)
            self.files[name] = one
        return changed

    def drop(self, name: str) -> None:
        """Delete a file of an earlier result of an image, if it is segment's own."""
        if self.is_own(name):
            (self.out / name).unlink()
            del self.files[name]

    def add(self, name: str, done: Done) -> None:
        """Take over an image whose files are in place."""
        self._note({"image": name, "done": asdict(done)})
        self.images[name] = done

    def _note(self, *lines: Mapping[str, object], is_synced: bool = False) -> None:
        path = self.out / JOURNAL
        with named_faults(path), path.open("a", encoding="utf-8") as journal:
            journal.writelines(json.dumps(line) + "\n" for line in lines)
            if is_synced:
                journal.flush()
                os.fsync(journal.fileno())

    def save(self) -> None:
        """Write segment.json, which replaces the journal."""
        content = {
            "written_by": WRITER,
            "made_by": self.made_by,
            "colors": list(self.colours),
            "files": {name: asdict(written) for name, written in sorted(self.files.items())},
            "images": {name: asdict(done) for name, done in sorted(self.images.items())},
        }
        indent = 2 if len(self.files) <= MOST_INDENTED else None
        write_text(self.out / MANIFEST, json.dumps(content, indent=indent, allow_nan=False) + "\n")
        (self.out / JOURNAL).unlink(missing_ok=True)


def written_in(folder: Path, names: Iterable[str]) -> dict[str, Written]:
    """The state of finished files of a folder, by their names."""
    return {name: Written((folder / name).stat().st_mtime_ns, file_sha256(folder / name)) for name in names}


def shares(ids: np.ndarray) -> dict[str, float]:
    """Share of the pixels of each id that occurs."""
    counts = count_ids(ids).tolist()
    return {str(one): round(count / ids.size, 6) for one, count in enumerate(counts) if count}


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
