"""Prepare (A.1): decode, check and pack all images at working size, and the label maps apart from them."""

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.core.artefacts import write_csv, write_json
from stages.core.images import COLUMNS, IMAGES, INDEX
from stages.dataset.journal import Journal, Packed, fingerprint, is_unchanged, staged_folder, staged_path
from stages.dataset.pack import Job, Work, create_arrays, pack
from stages.dataset.source import DataSet, RawFile, list_data
from stages.dataset.summary import hash_files, summarise
from stages.dataset.truth import write_classes
from stages.runtime.progress import say, track
from stages.runtime.watch import Watch
from stages.settings.errors import UserError, raise_faults, run
from stages.settings.params import check_data_size, load

KEYS = ("size_px", "prepare")
MOST_FAULTS = 20  # that are shown one by one
SPARE_BYTES = 1 << 24  # of disk space beside the arrays, for indices and file system
JOURNAL = ".journal"  # what is finished, while it is packed


def main(argv: Sequence[str] | None = None) -> None:
    """Pack both splits; nothing is replaced unless everything is in order."""
    args = _parse(argv)
    params = load(args.params, *KEYS, "runtime")
    watch = Watch("prepare", args.params, KEYS, [])  # files of the data set are looked at one by one
    data = list_data(params.prepare)
    check_data_size(args.params, len(data.train))
    for note in data.notes:
        print(f"prepare: {note}", flush=True)
    _check_disk_space(args.train_images, data, params)
    # What the data should hash to decides nothing that is packed.
    settings = {"size_px": params.size_px, "prepare": params.prepare.model_dump(exclude={"manifest_sha256"})}
    made_by = fingerprint(settings, (data.train, data.val))
    with (
        staged_folder(args.truth, made_by) as truth,
        staged_folder(args.train_images, made_by) as train_images,
        staged_folder(args.val_images, made_by) as val_images,
    ):
        train, val = _pack(train_images, val_images, truth, data, params)
        packed = (*train, *val)
        files = (*(file for one in packed for file in one.files), *data.other_files)
        _check_faults([*(fault for one in packed for fault in one.faults), *_changes(data, files)])
        manifest = hash_files(files)
        _check_manifest(params.prepare.manifest_sha256, manifest)
        write_csv(train_images / INDEX, _index(train))
        write_csv(val_images / INDEX, _index(val))
        write_classes(truth, data.class_names, data.class_kinds)
        summary = summarise(data, train, val, truth / "val.npy", manifest)
        watch.check(" (images that are packed stay so)")
    write_json(args.metrics, {"prepare": summary})
    _report(summary, params)


def _check_disk_space(folder: Path, data: DataSet, params: Any) -> None:
    train_bytes = 3 * len(data.train) * params.prepare.train_px**2
    needed = train_bytes + 4 * len(data.val) * params.size_px**2 + SPARE_BYTES
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free + _already_there(folder)
    say("prepare", images=len(data.train) + len(data.val), needs_gb=needed / 1e9, free_gb=free / 1e9)
    if free < needed:
        raise UserError(
            f"{folder}: packing {len(data.train)} + {len(data.val)} images needs {needed / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free; make room, or lower prepare.train_px "
            f"(now {params.prepare.train_px})"
        )
    if free < 2 * needed:
        print(
            "prepare: DVC keeps a copy of outputs in its cache, and there is no room for one; "
            "`dvc config cache.type reflink,hardlink` makes it a link",
            flush=True,
        )


def _already_there(folder: Path) -> int:
    """Bytes on disk of what an earlier run left half done."""
    staged = staged_path(folder)
    return sum(file.stat().st_blocks * 512 for file in staged.glob("*")) if staged.exists() else 0


def _pack(
    train_images: Path, val_images: Path, truth: Path, data: DataSet, params: Any
) -> tuple[list[Packed], list[Packed]]:
    protocol, maps = params.prepare.protocol, truth / "val.npy"
    train = Work(data.decode, data.root, train_images / IMAGES, None, params.prepare.train_px, protocol)
    val = Work(data.decode, data.root, val_images / IMAGES, maps, params.size_px, protocol)
    jobs, total = (Job(train, data.train), Job(val, data.val)), len(data.train) + len(data.val)
    for job in jobs:
        create_arrays(job.work, len(job.items))
    with Journal(train_images / JOURNAL, (data.train, data.val)) as journal:
        known = sum(map(len, journal.finished))
        if known:
            print(f"prepare: {known:,} of {total:,} images are there from an earlier run", flush=True)
        start = time.monotonic()
        results = list(
            track(pack(jobs, params.runtime.num_workers, journal), "prepare", total=total, unit="image")
        )
    say("prepare", images_per_second=(total - known) / (time.monotonic() - start))
    return results[: len(data.train)], results[len(data.train) :]


def _changes(data: DataSet, files: Sequence[RawFile]) -> Iterator[str]:
    for file in dict.fromkeys(files):  # several squares may be of one picture
        if not is_unchanged(data.root, file):
            yield f"{file.name}: changed after it was read; run `dvc repro` again"


def _check_faults(faults: Sequence[str]) -> None:
    shown = list(faults[:MOST_FAULTS])
    if len(faults) > MOST_FAULTS:
        shown.append(f"... and {len(faults) - MOST_FAULTS} more faults, {len(faults)} in all")
    raise_faults(shown)


def _check_manifest(expected: str, found: str) -> None:
    if expected and found != expected:
        raise UserError(
            f"prepare.manifest_sha256: is {expected}, but the data hash to {found}: "
            "files were changed, added or removed; restore them, or accept the data as they are "
            "with `make preset NAME=... DATA=...`"
        )


def _index(rows: Sequence[Packed]) -> pd.DataFrame:
    return pd.DataFrame(
        [(row.item.id, row.item.source, row.width, row.height, row.files[0].sha256) for row in rows],
        columns=COLUMNS,
    )


def _report(summary: dict[str, Any], params: Any) -> None:
    say("prepare", train_images=summary["train_images"], side_px=params.prepare.train_px)
    say("prepare", val_images=summary["val_images"], side_px=params.size_px)
    say("prepare", manifest_sha256=summary["manifest_sha256"])
    for reason, count in summary["skipped"].items():
        print(f"prepare: left out {count:,} files: {reason}")
    if not summary["classes"]:
        print("prepare: no label maps (labels/val), so results will be described, not scored")
        return
    shares = (f"{name} {share:.1%}" for name, share in summary["class_shares"].items())
    print(f"prepare: labelled pixels: {', '.join(shares)}; ignored: {summary['ignored_share']:.1%} of all")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.prepare", description=__doc__)
    images = "images uint8 [N, S, S, 3] and their index"
    parser.add_argument("--train-images", type=Path, required=True, help=f"folder to write: {images}")
    parser.add_argument("--val-images", type=Path, required=True, help=f"folder to write: {images}")
    parser.add_argument(
        "--truth", type=Path, required=True, help="folder to write: label maps uint8 [M, S, S], classes"
    )
    parser.add_argument(
        "--metrics", type=Path, required=True, help="JSON to write: counts and pixel shares in [0, 1]"
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
