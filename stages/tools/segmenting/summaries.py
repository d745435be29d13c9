"""Files of `segment` for all images together: legend, table, and the formats of other programs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stages.dataset.listing import LeftOut
from stages.dataset.own_outputs import modified_ns, read_manifest
from stages.reporting.legend import write_cluster_legend
from stages.tools.segmenting import coco, cvat, label_studio
from stages.tools.segmenting.formats import Annotated, Label, Write, unique_labels
from stages.tools.segmenting.label_files import output_names, read_ids
from stages.tools.segmenting.output_folder import staging
from stages.tools.segmenting.photographs import Photographs
from stages.tools.segmenting.run_manifest import LEGEND, TABLE, RunManifest, shares, write_table
from stages.tools.segmenting.trained_model import TrainedModel

CORRECTED = "label maps were corrected by hand and are kept"
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
            log(f"{', '.join(changed)}: changed since segment has written it, and left as it is")
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
    images, corrected = [], LeftOut()
    names = [name for name in sorted(manifest.images) if manifest.is_current(name, photographs.root)]
    for name in names:
        done, mask = manifest.images[name], output_names(name, scores=False)[0]
        if not manifest.is_own(mask):
            corrected.add(CORRECTED, mask)
            found = shares(read_ids(out / mask, (done.width, done.height)))
            manifest.images[name] = replace(done, shares=found)
        images.append(
            Annotated(photographs.root.name, name, out / mask, done.width, done.height, done.confidence)
        )
    written = [LEGEND, TABLE]
    with staging(out) as folder:
        write_cluster_legend(folder / LEGEND, model.legend, model.lineage)
        write_table(folder / TABLE, manifest, names, {label.id: label.name for label in labels})
        for name in formats:
            write, files = FORMATS[name]
            write(folder, images, labels, model.fingerprint)
            written += files
        for name in written:
            manifest.take(folder / name, name)
    for text, masks in corrected.items():
        log(f"{masks.count:,} {text} ({masks})")
    log(f"{out} has the label maps of {len(names):,} images, and {', '.join(written)}")
