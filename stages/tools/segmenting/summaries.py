"""Files of `segment` for all images together: legend, table, and the formats of other programs."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from stages.core.artefacts import write_csv
from stages.dataset.left_out import LISTING, LeftOut
from stages.dataset.own_outputs import read_manifest
from stages.reporting.legend import rgb, write_cluster_legend
from stages.runtime.progress import warn
from stages.settings.errors import UserError, raise_faults
from stages.tools.segmenting import coco, cvat, label_studio
from stages.tools.segmenting.formats import Annotated, Format, Label, unique_labels
from stages.tools.segmenting.label_files import output_names
from stages.tools.segmenting.output_folder import staging
from stages.tools.segmenting.photographs import Photographs
from stages.tools.segmenting.reading_back import ids_of_no_cluster, merge, read_ids
from stages.tools.segmenting.run_manifest import (
    LEGEND,
    TABLE,
    Done,
    RunManifest,
    shares,
    write_table,
    written_in,
)
from stages.tools.segmenting.trained_model import TrainedModel

CORRECTED = "label maps were corrected by hand and are kept"
# The same of label maps that do not fit the run; who moves one away gets its image segmented again.
OLDER = f"{CORRECTED}, though their photographs have changed since"
OTHER_CLUSTERS = (
    f"{CORRECTED}, but have the ids of other clusters, and are left out of {TABLE} and all formats"
)
UNKNOWN = f"{CORRECTED}, but may be of other photographs than those given, which have no row in {TABLE}"
NO_CLUSTER = (
    "corrected label maps have pixels with ids of no cluster, which are in no share and no format; 255 is "
    "for pixels to be ignored"
)
LEFT_BEHIND = f"files of earlier runs stay, whose photographs this run does not have; they are not in {TABLE}"
CHANGED = "changed since segment has written it, and left as it is"
FORMATS = {
    "coco": Format(coco.write_coco, (coco.FILE,)),
    "labelstudio": Format(
        label_studio.write_label_studio, (label_studio.FILE, label_studio.INTERFACE), label_studio.PARTS
    ),
    "cvat": Format(cvat.write_cvat, (cvat.FILE, cvat.LABELS)),
}


def formats_to_renew(out: Path, given: Sequence[str]) -> list[str]:
    """Formats that an earlier run has written: without the images of this run they would be out of date."""
    own, found = read_manifest(out) or {}, []
    for name, one in FORMATS.items():
        present = [file for file in own if one.has(file) and (out / file).exists()]
        changed = [file for file in present if not own[file].is_at(out / file)]
        if name not in given and changed:
            warn(
                "segment",
                f"{', '.join(changed)}: {CHANGED}, so no file of format {name} is renewed "
                f"({', '.join(present)}); to have them written, move it away and pass --format {name}",
            )
        elif name not in given and present:
            found.append(name)
    return found


def files_of(out: Path, formats: Sequence[str]) -> list[str]:
    """Files of formats: those that they always have, and the parts that are there."""
    always = [file for name in formats for file in FORMATS[name].files]
    return list(dict.fromkeys([*always, *_names_in(out, formats)]))


def _names_in(folder: Path, formats: Sequence[str]) -> list[str]:
    """Files of formats in a folder, in the order of the formats."""
    names = sorted(os.listdir(folder))
    return [name for one in formats for name in names if FORMATS[one].has(name)]


def write_summaries(
    out: Path,
    model: TrainedModel,
    manifest: RunManifest,
    photographs: Photographs,
    formats: Sequence[str],
    left_out: LeftOut,
    log: Callable[[str], None],
) -> list[str]:
    """Write the files for all images together; without anything in `left_out` there is no table of it.

    Returns:
        Those that are out of date, because they were changed where they are and so are left.
    """
    labels: list[Label] = unique_labels(model.legend)
    images, remarks, doubts, root = [], LeftOut(), LeftOut(), photographs.root
    for name in _current(model, manifest, photographs, remarks, doubts):
        done, mask = manifest.images[name], out / output_names(name, scores=False)[0]
        size = (done.width, done.height)
        colours = _colours(model, done)
        images.append(Annotated(root.name, name, mask, *size, done.confidence, model.legend.merged, colours))
    names = [image.source for image in images]
    written = [LEGEND, TABLE]
    with staging(out) as folder:
        write_cluster_legend(folder / LEGEND, model.legend, model.lineage.own)
        write_table(folder / TABLE, manifest, names, {label.id: label.name for label in labels})
        if left_out:
            write_csv(folder / LISTING, left_out.table())
            written.append(LISTING)
        _write_formats(folder, formats, images, labels, model.fingerprint)
        written += _names_in(folder, formats)
        changed = manifest.take_all(folder, written_in(folder, written))
    if not left_out:
        manifest.drop(LISTING)
    old = _drop_others(manifest, _names_in(out, formats), written)
    for name in changed:
        warn("segment", f"{name}: {CHANGED}; move it away to have it written")
        written.remove(name)
    for name in _left_behind(manifest, photographs):
        remarks.add(LEFT_BEHIND, name)
    for text, some in doubts.items():
        warn("segment", f"{some.count:,} {text} ({some})")
    for text, some in remarks.items():
        log(f"{some.count:,} {text} ({some})")
    log(f"{out} has the label maps of {len(names):,} images, and {', '.join(written)}")
    if LISTING in written:
        log(f"{out / LISTING} names every file that was left out")
    return [*changed, *old]


def _drop_others(manifest: RunManifest, names: Sequence[str], written: Sequence[str]) -> list[str]:
    """Delete files of formats that this run has not written: parts of an earlier run with more of them.

    Returns:
        Those that are not deleted, because they were changed.
    """
    left = []
    for name in names:
        if name in written:
            continue
        manifest.drop(name)
        if name in manifest.files:
            remedy = "move it away, so that it is not taken for one of this run"
            warn("segment", f"{name}: part of an earlier run, {CHANGED}; {remedy}")
            left.append(name)
    return left


def _write_formats(
    folder: Path, formats: Sequence[str], images: Sequence[Annotated], labels: Sequence[Label], model: str
) -> None:
    """Write the files of all formats at once: each label map is decoded once, and one at a time."""
    with contextlib.ExitStack() as stack:
        adds = [stack.enter_context(FORMATS[name].write(folder, images, labels, model)) for name in formats]
        for image in images if adds else ():
            found = image.label_map(labels)
            for add in adds:
                add(image, found)


def _current(
    model: TrainedModel,
    manifest: RunManifest,
    photographs: Photographs,
    corrected: LeftOut,
    doubts: LeftOut,
) -> list[str]:
    """The images that are done and go into the summaries; corrected label maps get their own shares.

    Args:
        model: the model of the run.
        manifest: of the run.
        photographs: of the run; earlier runs may have done others.
        corrected: takes the label maps that were corrected, with what is to be known of them.
        doubts: takes those of them that may not be what they are taken for.

    Raises:
        UserError: corrected label maps cannot be read, or have no cluster; the error names all of them.
    """
    current, faults, given = [], list[str](), set(photographs.names)
    for name in sorted({*manifest.images, *given}):
        mask = output_names(name, scores=False)[0]
        is_done = name in manifest.images and manifest.is_current(name, photographs.root)
        if is_done and manifest.is_own(mask):
            current.append(name)
        elif is_done:
            try:
                reason = _take_over(model, manifest, name, photographs.root, doubts)
            except UserError as error:
                faults.append(str(error))
                continue
            corrected.add(reason, mask)
            if reason != OTHER_CLUSTERS:
                current.append(name)
        elif name in given and manifest.is_changed(mask):
            corrected.add(UNKNOWN, mask)
    raise_faults(faults)
    return current


def _left_behind(manifest: RunManifest, photographs: Photographs) -> list[str]:
    """Files of earlier runs whose photographs are gone, or were done with another model and are not given."""
    there = {name for name in manifest.images if manifest.is_current(name, photographs.root)}
    known = {file for name in there.union(photographs.names) for file in output_names(name, scores=True)}
    others = sorted(manifest.files.keys() - known - {LEGEND, TABLE, LISTING})
    others = [name for name in others if not any(one.has(name) for one in FORMATS.values())]
    return [name for name in others if (manifest.out / name).is_file()]


def _take_over(model: TrainedModel, manifest: RunManifest, name: str, root: Path, doubts: LeftOut) -> str:
    """Give an image that is done the shares of its corrected label map, and say what that map is."""
    done, lineage = manifest.images[name], model.lineage
    if done.clusters and done.clusters not in lineage:
        return OTHER_CLUSTERS
    mask = manifest.out / output_names(name, scores=False)[0]
    ids = read_ids(mask, (done.width, done.height), _colours(model, done), model.legend.merged)
    if not shares(ids).keys().isdisjoint(map(str, lineage.void.get(done.clusters, ()))):
        return OTHER_CLUSTERS
    if unknown := ids_of_no_cluster(mask, ids, len(model.legend.merged)):
        doubts.add(NO_CLUSTER, output_names(name, scores=False)[0], unknown)
    manifest.images[name] = replace(done, shares=shares(merge(ids, model.legend.merged)))
    return CORRECTED if done.is_of(root / name) else OLDER


def _colours(model: TrainedModel, done: Done) -> UInt8[np.ndarray, "K 3"]:
    """RGB of each cluster id, with which the label map of an image was written."""
    return rgb(done.colours) if done.colours else model.legend.colours
