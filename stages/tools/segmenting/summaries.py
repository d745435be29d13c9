"""Files of `segment` for all images together: legend, table, and the formats of other programs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stages.dataset.left_out import LeftOut
from stages.dataset.own_outputs import modified_ns, read_manifest
from stages.reporting.legend import write_cluster_legend
from stages.tools.segmenting import coco, cvat, label_studio
from stages.tools.segmenting.formats import Annotated, Label, Write, unique_labels
from stages.tools.segmenting.label_files import merge, output_names, read_ids
from stages.tools.segmenting.output_folder import staging
from stages.tools.segmenting.photographs import Photographs
from stages.tools.segmenting.run_manifest import LEGEND, TABLE, RunManifest, shares, write_table
from stages.tools.segmenting.trained_model import TrainedModel

CORRECTED = "label maps were corrected by hand and are kept"
# The same of label maps that do not fit the run; who moves one away gets its image segmented again.
OLDER = f"{CORRECTED}, though their photographs have changed since"
OTHER_CLUSTERS = (
    f"{CORRECTED}, but have the ids of other clusters, and are left out of {TABLE} and all formats"
)
UNKNOWN = f"{CORRECTED}, but may be of other photographs than those given, which have no row in {TABLE}"
CHANGED = "changed since segment has written it, and left as it is"
FORMATS: dict[str, tuple[Write, tuple[str, ...]]] = {
    "masks": (lambda *_: None, ()),
    "coco": (coco.write_coco, (coco.FILE,)),
    "labelstudio": (label_studio.write_label_studio, (label_studio.FILE, label_studio.INTERFACE)),
    "cvat": (cvat.write_cvat, (cvat.FILE, cvat.LABELS)),
}


def formats_to_renew(out: Path, given: Sequence[str], log: Callable[[str], None]) -> list[str]:
    """Formats that an earlier run has written: without the images of this run they would be out of date."""
    own, found = read_manifest(out) or {}, []
    for name, (_, files) in FORMATS.items():
        present = [file for file in files if file in own and (out / file).exists()]
        changed = [file for file in present if own[file] != modified_ns(out / file)]
        if name not in given and changed:
            log(f"{', '.join(changed)}: {CHANGED}")
        elif name not in given and present:
            found.append(name)
    return found


def write_summaries(
    out: Path,
    model: TrainedModel,
    manifest: RunManifest,
    photographs: Photographs,
    formats: Sequence[str],
    log: Callable[[str], None],
) -> None:
    """Write the files for all images together."""
    labels: list[Label] = unique_labels(model.legend)
    images, corrected, root = [], LeftOut(), photographs.root
    for name in _current(model, manifest, photographs, corrected):
        done, mask = manifest.images[name], out / output_names(name, scores=False)[0]
        images.append(
            Annotated(root.name, name, mask, done.width, done.height, done.confidence, model.legend.merged)
        )
    names = [image.source for image in images]
    written = [LEGEND, TABLE]
    with staging(out) as folder:
        write_cluster_legend(folder / LEGEND, model.legend, model.lineage)
        write_table(folder / TABLE, manifest, names, {label.id: label.name for label in labels})
        for name in formats:
            write, files = FORMATS[name]
            write(folder, images, labels, model.fingerprint)
            written += files
        changed = manifest.take_all(folder, written)
    for name in changed:
        log(f"{name}: {CHANGED}")
        written.remove(name)
    for text, masks in corrected.items():
        log(f"{masks.count:,} {text} ({masks})")
    log(f"{out} has the label maps of {len(names):,} images, and {', '.join(written)}")


def _current(
    model: TrainedModel, manifest: RunManifest, photographs: Photographs, corrected: LeftOut
) -> list[str]:
    """The images that are done and go into the summaries; corrected label maps get their own shares.

    Args:
        model: the model of the run.
        manifest: of the run.
        photographs: of the run; earlier runs may have done others.
        corrected: takes the label maps that were corrected, with what is to be known of them.
    """
    current, given = [], set(photographs.names)
    for name in sorted({*manifest.images, *given}):
        mask = output_names(name, scores=False)[0]
        is_done = name in manifest.images and manifest.is_current(name, photographs.root)
        if is_done and manifest.is_own(mask):
            current.append(name)
        elif is_done:
            reason = _take_over(model, manifest, name, photographs.root)
            corrected.add(reason, mask)
            if reason != OTHER_CLUSTERS:
                current.append(name)
        elif name in given and manifest.is_changed(mask):
            corrected.add(UNKNOWN, mask)
    return current


def _take_over(model: TrainedModel, manifest: RunManifest, name: str, root: Path) -> str:
    """Give an image that is done the shares of its corrected label map, and say what that map is."""
    done, lineage = manifest.images[name], model.lineage
    if done.clusters and done.clusters not in lineage:
        return OTHER_CLUSTERS
    ids = read_ids(manifest.out / output_names(name, scores=False)[0], (done.width, done.height))
    if not shares(ids).keys().isdisjoint(map(str, lineage.void.get(done.clusters, ()))):
        return OTHER_CLUSTERS
    manifest.images[name] = replace(done, shares=shares(merge(ids, model.legend.merged)))
    return CORRECTED if done.is_of(root / name) else OLDER
