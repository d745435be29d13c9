"""Prepare (A.1): decode, check and pack all images at working size, and the label maps apart from them."""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.dataset.demo import list_demo
from stages.dataset.folder import list_folder
from stages.dataset.manifest import hash_files
from stages.dataset.pack import Job, Packed, Work, create_arrays, pack
from stages.dataset.source import DataSet
from stages.dataset.store import COLUMNS
from stages.dataset.truth import IGNORED, write_classes
from stages.runtime.artefacts import atomic_folder, write_csv, write_json
from stages.runtime.errors import UserError, raise_faults, run
from stages.runtime.fit import check_data_size
from stages.runtime.params import load
from stages.runtime.progress import say, track

MOST_FAULTS = 20  # that are shown one by one
SPARE_BYTES = 1 << 24  # of disk space beside the arrays, for indices and file system


def main(argv: Sequence[str] | None = None) -> None:
    """Pack both splits; nothing is replaced unless everything is in order."""
    args = _parse(argv)
    params = load(args.params, "size_px", "prepare", "runtime")
    data = _list(params.prepare)
    check_data_size(args.params, len(data.train))
    _check_disk_space(args.images, data, params)
    with atomic_folder(args.images) as images, atomic_folder(args.truth) as truth:
        train = Work(data.decode, images / "train.npy", None, params.prepare.train_px)
        val = Work(data.decode, images / "val.npy", truth / "val.npy", params.size_px)
        results = _pack([Job(train, data.train), Job(val, data.val)], params.runtime.num_workers)
        _check_faults([fault for result in results for fault in result.faults])
        manifest = hash_files((*(file for result in results for file in result.files), *data.other_files))
        _check_manifest(params.prepare.manifest_sha256, manifest)
        write_csv(images / "train.csv", _index(results[: len(data.train)]))
        write_csv(images / "val.csv", _index(results[len(data.train) :]))
        write_classes(truth, data.class_names, data.class_kinds)
        summary = _summary(data, truth / "val.npy", manifest)
    write_json(args.metrics, {"prepare": summary})
    _report(summary, params)


def _list(prepare: Any) -> DataSet:
    if prepare.reader == "demo":
        return list_demo(prepare.demo.num_train, prepare.demo.num_val)
    return list_folder(Path(os.environ.get("DVC_ROOT", ".")) / prepare.path)


def _check_disk_space(folder: Path, data: DataSet, params: Any) -> None:
    train_bytes = 3 * len(data.train) * params.prepare.train_px**2
    needed = train_bytes + 4 * len(data.val) * params.size_px**2 + SPARE_BYTES
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{folder}: packing {len(data.train)} + {len(data.val)} images needs {needed / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free; make room, or lower prepare.train_px "
            f"(now {params.prepare.train_px})"
        )


def _pack(jobs: Sequence[Job], num_workers: int) -> list[Packed]:
    for job in jobs:
        create_arrays(job.work, len(job.items))
    total = sum(len(job.items) for job in jobs)
    return list(track(pack(jobs, num_workers), "prepare", total=total, unit="image"))


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
            "with `make preset NAME=folder DATA=...`"
        )


def _index(rows: Sequence[Packed]) -> pd.DataFrame:
    return pd.DataFrame(
        [(row.item.id, row.item.source, row.width, row.height, row.files[0].sha256) for row in rows],
        columns=COLUMNS,
    )


def _summary(data: DataSet, maps: Path, manifest: str) -> dict[str, Any]:
    counts = np.zeros(IGNORED + 1, np.int64)
    for labels in np.load(maps, mmap_mode="r"):
        counts += np.bincount(labels.ravel(), minlength=IGNORED + 1)
    labelled = int(counts[:IGNORED].sum())
    return {
        "train_images": len(data.train),
        "val_images": len(data.val),
        "classes": len(data.class_names),
        "labelled_share": labelled / int(counts.sum()),
        "manifest_sha256": manifest,
        "class_shares": {
            name: int(count) / max(labelled, 1) for name, count in zip(data.class_names, counts, strict=False)
        },
    }


def _report(summary: dict[str, Any], params: Any) -> None:
    say("prepare", train_images=summary["train_images"], side_px=params.prepare.train_px)
    say("prepare", val_images=summary["val_images"], side_px=params.size_px)
    say("prepare", manifest_sha256=summary["manifest_sha256"])
    if not summary["classes"]:
        print("prepare: no label maps (labels/val), so results will be described, not scored")
        return
    ignored = 1 - summary["labelled_share"]
    shares = (f"{name} {share:.1%}" for name, share in summary["class_shares"].items())
    print(f"prepare: labelled pixels: {', '.join(shares)}; ignored: {ignored:.1%} of all")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.prepare", description=__doc__)
    parser.add_argument(
        "--images", type=Path, required=True, help="folder to write: images uint8 [N, S, S, 3], indices"
    )
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
