"""What an earlier run has left in the output folder: what is done, what is kept, and what is refused."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.core.artefacts import read_json
from stages.dataset.own_outputs import JOURNAL, MANIFEST, read_journal, read_manifest
from stages.settings.errors import UserError
from stages.tools.segmenting.label_files import output_names
from stages.tools.segmenting.photographs import Photographs
from stages.tools.segmenting.run_manifest import FOLDER, MODEL, Done, RunManifest


def begin(
    out: Path,
    photographs: Photographs,
    made_by: Mapping[str, str],
    colours: Sequence[str],
    extra: Sequence[str],
    *,
    bits: int,
    scores: bool,
    overlay: bool,
    overwrite: bool,
) -> tuple[RunManifest, list[str]]:
    """Go on with an earlier run, or begin a new one.

    An image whose label map was corrected by hand is not done again, whatever has changed.

    Args:
        out: output folder.
        photographs: images to segment.
        made_by: model and options, in words.
        colours: CSS color of each cluster id.
        extra: files for all images together, which are always written anew.
        bits: bits of 16-bit channels that are in use.
        scores: whether maps of confidence are written.
        overlay: whether overlays are written.
        overwrite: replace own files of another model or other options, and do everything again.

    Returns:
        The manifest, and the names of the images that are yet to be done.

    Raises:
        UserError: a file would be replaced that segment has not written, or, without `overwrite`, one that it
            has written with another model or other options.
    """
    own = read_manifest(out)
    before = {} if own is None else read_json(out / MANIFEST)
    earlier = before.get("made_by", {})  # an older version has written none
    # An older version has no key for what it had no choice of.
    other = [f"another {key}" for key in made_by if earlier.get(key, "") != made_by[key]]
    manifest = RunManifest(out, made_by, colours, own or {}, _images(out, before) if earlier else {})
    if earlier and other:
        manifest.images = _of_corrected(manifest, photographs.root, before)
    outputs = {name: output_names(name, scores=scores, overlay=overlay) for name in photographs.names}
    todo = _todo(manifest, photographs, outputs, bits=bits, overwrite=overwrite)
    written = [*extra, *(one for name in todo for one in outputs[name])]
    present = [name for name in written if os.path.lexists(out / name)]
    foreign = [name for name in present if name not in manifest.files]
    if own is None and os.path.lexists(out / MANIFEST):
        foreign.append(MANIFEST)
    _check(out, foreign, present, [] if overwrite else other)
    if (out / JOURNAL).exists():  # it goes with `earlier`, and must not be read with what this run is made by
        RunManifest(out, earlier, before.get("colors", ()), manifest.files, manifest.images).save()
    lost = set(written)
    manifest.images = {
        name: done
        for name, done in manifest.images.items()
        if not lost & set(output_names(name, scores=False))
    }
    manifest.save()
    return manifest, todo


def _todo(
    manifest: RunManifest,
    photographs: Photographs,
    outputs: Mapping[str, Sequence[str]],
    *,
    bits: int,
    overwrite: bool,
) -> list[str]:
    """Names of the images that are yet to be done; none whose label map was corrected by hand."""
    # Label maps of images that this run leaves out in favor of others, which have outputs of these names.
    others = {output_names(name, scores=False)[0] for name in manifest.images if name not in outputs}
    return [
        name
        for name, files in outputs.items()
        if not manifest.is_changed(files[0])
        and (
            overwrite
            or not others.isdisjoint(files)
            or not manifest.has(name, photographs.root / name, files, bits)
        )
    ]


def _check(out: Path, foreign: Sequence[str], present: Sequence[str], other: Sequence[str]) -> None:
    """Refuse to replace files that are foreign, or that are present and made with something other.

    Raises:
        UserError: there are any.
    """
    if foreign:
        raise UserError(
            f"{out}: has {len(foreign):,} files that segment would replace but has not written "
            f"({', '.join(foreign[:3])}); choose another folder with --out"
        )
    if present and other:
        raise UserError(
            f"{out}: has {len(present):,} files of a run with {', '.join(other)} "
            f"({', '.join(present[:3])}); pass --overwrite to replace them, or choose another folder "
            "with --out"
        )


def _of_corrected(manifest: RunManifest, root: Path, before: Mapping[str, Any]) -> dict[str, Done]:
    """Of what was done with another model or other options, the images whose label maps were corrected.

    Args:
        manifest: with the images of the earlier run.
        root: folder of the photographs of this run; those of another folder may have the same names.
        before: segment.json of the earlier run.
    """
    earlier, colours = before["made_by"], before.get("colors", ())
    is_elsewhere = earlier[FOLDER] != manifest.made_by[FOLDER]
    clusters = ""
    if earlier[MODEL] != manifest.made_by[MODEL]:
        clusters = earlier[MODEL].rpartition("-")[2]
    return {
        name: replace(done, clusters=done.clusters or clusters, colours=done.colours or colours)
        for name, done in manifest.images.items()
        if manifest.is_changed(output_names(name, scores=False)[0])
        and not (is_elsewhere and not done.is_of(root / name))
    }


def _images(out: Path, before: Mapping[str, Any]) -> dict[str, Done]:
    """What is done, by segment.json and the journal."""
    done = before.get("images", {}) | {
        line["image"]: line["done"] for line in read_journal(out) if "image" in line
    }
    return {name: Done(**values) for name, values in done.items()}
