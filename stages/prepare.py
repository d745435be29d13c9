"""Stage `prepare`: decode, check and pack all images at working size; store label maps separately (A.1)."""

import argparse
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core.artefacts import create_array, write_csv, write_metrics
from stages.core.atomic import atomic_folder
from stages.core.images import COLUMNS, IMAGES, INDEX
from stages.dataset.faults import check_faults, leave_out_damaged, too_many_damaged
from stages.dataset.left_out import LISTING
from stages.dataset.pack import MAPS, TRAIN, VAL, Packed
from stages.dataset.raw_files import check_manifest, pinned_files, raw_files
from stages.dataset.source import (
    DataSet,
    RawFile,
    find_reader,
    hash_files,
    is_unchanged,
    list_data,
)
from stages.dataset.summary import summarise
from stages.dataset.survey import decoding, survey
from stages.dataset.truth import write_classes
from stages.runtime.links import link
from stages.runtime.progress import say, tell, warn
from stages.runtime.script import run, stage_parser
from stages.runtime.watch import Watch
from stages.settings.data_size import check_data_size, check_heads
from stages.settings.errors import UserError
from stages.settings.params import load
from stages.settings.schema import Params

KEYS = ("size_px", "prepare")
PINS = ["prepare.manifest_sha256", "prepare.most_damaged"]  # checks, which change no packed image
SPARE_BYTES = 1 << 24  # disk space for the index files and the file system, besides the arrays


def main(argv: Sequence[str] | None = None) -> None:
    """Pack both splits; replace existing outputs only after all checks pass."""
    # Worker processes import this module anew, and torch, which the state needs and they do not, takes each
    # of them seconds and 0.4 GB. So these two are imported here.
    from stages.dataset.packed_splits import pack_splits
    from stages.runtime.state import StageState

    args = _parse(argv)
    params = load(args.params, *KEYS, "runtime")
    find_reader(params.prepare)  # so that its code is watched too
    watch = Watch("prepare", args.params, KEYS, [])  # `_changes` checks the data files
    data = survey(list_data(params.prepare))
    pinned = params.prepare.manifest_sha256
    if pinned_files(pinned):  # else it takes reading every file, which packing does
        check_manifest(pinned, raw_files(data))
    check_data_size(args.params, len(data.train))
    check_heads(args.params)
    for note in data.notes:
        tell(f"prepare: {note}")
    # What decides the packed images besides the files themselves, which are looked at one by one.
    names = hashlib.sha256(repr((data.train, data.val, decoding(data))).encode()).hexdigest()
    interval = params.runtime.checkpoint_seconds
    state = StageState(watch, interval_seconds=interval, data=names, pins=PINS)
    _check_disk_space(args.train_images, state.folder, data, params)
    train, val = pack_splits(state, data, params)
    packed = (*train, *val)
    files = (*(file for one in packed for file in one.files), *data.other_files)
    most, listing = params.prepare.most_damaged, None
    leave_out_damaged(data.left_out, packed)
    if too_many_damaged(packed, most):
        listing = state.folder / LISTING
        write_csv(listing, data.left_out.table())
    check_faults(data.root, train, val, _changes(data, files), most, listing)
    manifest = hash_files(files)
    check_manifest(pinned, files)
    summary = summarise(data, train, val, state.folder / MAPS, manifest, params.prepare.protocol)
    state.check()
    for folder, rows, name in ((args.train_images, train, TRAIN), (args.val_images, val, VAL)):
        with atomic_folder(folder) as written:
            _deliver(state.folder / name, written / IMAGES, rows)
            write_csv(written / INDEX, _index(rows))
    with atomic_folder(args.truth) as written:
        _deliver(state.folder / MAPS, written / "val.npy", val)
        write_classes(written, data.class_names, data.class_kinds)
    write_csv(args.left_out, data.left_out.table())
    write_metrics(args.metrics, {"prepare": summary})
    state.finish()
    _report(summary, data, params, args.left_out)


def _check_disk_space(folder: Path, half_done: Path, data: DataSet, params: Params) -> None:
    train_bytes = 3 * len(data.train) * params.prepare.train_px**2
    needed = train_bytes + 4 * len(data.val) * params.size_px**2 + SPARE_BYTES
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free + _size_on_disk(half_done)
    say("prepare", images=len(data.train) + len(data.val), needs_gb=needed / 1e9, free_gb=free / 1e9)
    if free < needed:
        raise UserError(
            f"{folder}: packing {len(data.train)} + {len(data.val)} images needs {needed / 1e6:,.0f} MB, but "
            f"only {free / 1e6:,.0f} MB are free; free disk space, or lower prepare.train_px "
            f"(now {params.prepare.train_px})"
        )
    if free < 2 * needed:
        warn(
            "prepare",
            "too little disk space for DVC's cached copy of the outputs; run `dvc config cache.type "
            "reflink,hardlink` to link outputs instead of copying them",
        )


def _size_on_disk(folder: Path) -> int:
    """Return the disk usage of the files of an earlier run, in bytes."""
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def _changes(data: DataSet, files: Sequence[RawFile]) -> Iterator[str]:
    for file in dict.fromkeys(files):  # several tiles can come from one file
        if not is_unchanged(data.root, file):
            yield f"{file.name}: changed after it was read; run `dvc repro` again"


def _deliver(array: Path, target: Path, rows: Sequence[Packed]) -> None:
    """Hand over an array; without the rows of damaged images, if there are any."""
    kept = np.array([not row.faults for row in rows])
    if kept.all():
        link(array, target)
        return
    source = np.load(array, mmap_mode="r")
    written = create_array(target, source.dtype, (int(kept.sum()), *source.shape[1:]))
    for place, row in enumerate(np.flatnonzero(kept)):
        written[place] = source[row]
    written.flush()


def _index(rows: Sequence[Packed]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (row.item.id, row.item.source, row.width, row.height, row.files[0].sha256)
            for row in rows
            if not row.faults
        ],
        columns=COLUMNS,
    )


def _report(summary: dict[str, Any], data: DataSet, params: Params, listing: Path) -> None:
    say("prepare", train_images=summary["train_images"], side_px=params.prepare.train_px)
    say("prepare", val_images=summary["val_images"], side_px=params.size_px)
    say("prepare", manifest_sha256=summary["manifest_sha256"])
    for note in summary["notes"][len(data.notes) :]:  # the others were said before the images were read
        tell(f"prepare: {note}")
    for reason, names in summary["left_out"].items():
        more = ", ..." if names["files"] > len(names["examples"]) else ""
        tell(f"prepare: left out {names['files']:,}: {reason} ({', '.join(names['examples'])}{more})")
    if summary["left_out"]:
        tell(f"prepare: {listing} names all of them")
    for warning in summary["warnings"]:
        warn("prepare", warning)
    if not summary["classes"]:
        tell("prepare: no label maps (labels/val); only label-free metrics will be computed")
        return
    shares = (f"{name} {share:.1%}" for name, share in summary["class_shares"].items())
    tell(
        f"prepare: labeled pixels: {', '.join(shares)}; ignored: {summary['ignored_share']:.1%} of all pixels"
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = stage_parser("prepare", __doc__)
    images = "images uint8 [N, S, S, 3] and their index"
    parser.add_argument("--train-images", type=Path, required=True, help=f"output folder: {images}")
    parser.add_argument("--val-images", type=Path, required=True, help=f"output folder: {images}")
    parser.add_argument(
        "--truth", type=Path, required=True, help="output folder: label maps uint8 [M, S, S] and class names"
    )
    parser.add_argument(
        "--left-out", type=Path, required=True, help="output: every file that is not used, and why (.csv)"
    )
    parser.add_argument(
        "--metrics", type=Path, required=True, help="output: counts and pixel fractions in [0, 1] (.json)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
