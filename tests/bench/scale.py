"""What a whole run takes on this machine: `make scale`, or python -m tests.bench.scale [--preset NAME ...].

A few steps of each stage run at the settings of the preset, on random images of the real sizes, and are
multiplied by how often the run needs them. On a CPU the networks take batches of at most 8 images, and
k-means a part of its points and iterations. `--check` projects params.yaml instead, and compares with the
last `dvc repro` here.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stages.backbone.checkpoint import build_backbone, describe
from stages.core.artefacts import read_metrics
from stages.core.device import choose_device
from stages.pretraining.methods import phases
from stages.readers.cityscapes.cityscapes import CITYSCAPES_IMAGES, LONG_TILES
from stages.runtime.pool import count_cores
from stages.runtime.script import read_times, run
from stages.runtime.watch import summarise
from stages.settings.errors import UserError
from stages.settings.params import read
from stages.settings.schema import Params
from stages.tools.estimate import build_untrained, starting_python
from tests.bench.files import is_present, measure_files
from tests.bench.head import machine, memory_bytes
from tests.bench.meter import Observed, resident_bytes
from tests.bench.pieces import measure_kmeans, measure_networks
from tests.bench.projection import Projection
from tests.bench.stage_rows import Row, Setting, table
from tests.datasets import read_preset

PRESETS = ("cocostuff27", "cityscapes27")
COCO_IMAGES = 49_629, 2_175  # of the list of PiCIE and IIC: training and validation

Counts = tuple[int, int]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args = _parse(argv)
    with contextlib.redirect_stdout(sys.stderr):
        device = choose_device(args.device, "--device")
    print("\n".join(machine(device)), flush=True)
    if args.check:
        params = read(Path("params.yaml"))
        _check_up_to_date()
        data = read_metrics(Path("metrics/prepare.json"))["prepare"]
        counts = data["train_images"], data["val_images"]
        rows, _ = _project(params, counts, device, {})
        print("\n".join(compare(rows, read_times())))
        return
    known: dict[str, Any] = {}
    for name in args.preset or PRESETS:
        params = read_preset(name)
        counts = tuple(args.images) if args.images else count_images(params)
        rows, at = _project(params, counts, device, known)
        print(
            "\n".join(["", *_heading(params, at), "", *table(rows), "", *_assumptions(params, at)]),
            flush=True,
        )


def _check_up_to_date() -> None:
    """Refuse to hold a projection of params.yaml against a run of something else.

    Raises:
        UserError: a stage would run again.
    """
    from stages.tools.changes import changed_stages  # here, because the rest needs no DVC

    if stale := changed_stages():
        raise UserError(
            f"--check: {summarise(stale)} would run again (see `dvc status`), so the last run was one of "
            "other settings, code or data; run `dvc repro` first"
        )


def count_images(params: Params) -> Counts:
    """Images of training and validation in the published set of a preset.

    Raises:
        UserError: the preset is for images of the user's own.
    """
    prepare = params.prepare
    if prepare.reader == "demo":
        return prepare.demo.num_train, prepare.demo.num_val
    if prepare.reader == "cocostuff":
        return COCO_IMAGES
    if prepare.reader == "cityscapes":
        tiles = LONG_TILES if prepare.protocol == "picie_long" else 1
        folders = prepare.cityscapes.train, prepare.cityscapes.val
        train, val = (tiles * sum(CITYSCAPES_IMAGES[one] for one in split) for split in folders)
        return train, val
    raise UserError(
        f"--preset {params.preset}: is for images of your own, whose number is not known; for these, "
        "`make preset NAME=folder DATA=...` says how long a run takes"
    )


def _project(
    params: Params, counts: Counts, device: torch.device, known: dict[str, Any]
) -> tuple[list[Row], Setting]:
    """Measure, but what another preset had measured at the same settings; and multiply."""
    with contextlib.redirect_stdout(None):
        base, free = resident_bytes(), _free_bytes(device)
        measured = dict(_tell(measure_files(params, device, counts)))
        if (key := cost_key(params)) not in known:
            known[key] = {
                **dict(_tell(measure_networks(params, device))),
                **dict(_tell(measure_kmeans(params, device))),
            }
            known["start"] = starting_python().low
        measured |= known[key]
        at = Setting(*counts, count_cores(), known["start"], base, free, memory_bytes())
        trunk = build_backbone(describe(params.backbone))
        sizes = [_file_bytes(network) for network in (trunk, build_untrained(params, torch.device("cpu")))]
    projection = Projection(params, at, measured, dim=trunk.channels[-1], file_bytes=(sizes[0], sizes[1]))
    return projection.rows(), at


def cost_key(params: Params) -> str:
    """What the costs of networks and k-means depend on; presets with the same key are measured once."""
    no_matter: dict[str, Any] = {"preset": True, "prepare": True, "pretrain": {"queue_size"}}
    no_matter["train"] = {"image_loss": {"weight"}}  # any weight but 0 costs the same
    is_guided = params.train.image_loss.weight != 0
    return f"{params.model_dump_json(exclude=no_matter)} {params.prepare.train_px} {is_guided}"


def _tell(pieces: Iterator[tuple[str, Observed]]) -> Iterator[tuple[str, Observed]]:
    """Say what was measured, on the way."""
    for name, one in pieces:
        print(f"scale: {name}: {one.seconds:.3g} s each, of {one.items:,}", file=sys.stderr, flush=True)
        yield name, one


def _free_bytes(device: torch.device) -> float:
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0.0


def _file_bytes(network: torch.nn.Module) -> float:
    return float(sum(value.nbytes for value in network.state_dict().values()))


def _heading(params: Params, at: Setting) -> Iterator[str]:
    pretrain, train, backbone = params.pretrain, params.train, params.backbone
    pretraining = ", then ".join(
        f"{one.method}: {one.epochs} epochs, {one.view_px} px" for one in phases(pretrain) or [pretrain]
    )
    yield (
        f"**{params.preset}**: {at.num_train:,} training images, stored at {params.prepare.train_px} px, and "
        f"{at.num_val:,} validation images at {params.size_px} px; {backbone.arch}, {params.precision}; "
        f"{pretraining}, batch {pretrain.batch_size}; "
        f"train: {train.epochs} epochs, batch {train.batch_size}, {params.size_px} px."
    )


def _assumptions(params: Params, at: Setting) -> Iterator[str]:
    """What the table takes for granted, as a list."""
    yield (
        f"- One process for networks, whatever `runtime.nproc` says; {at.cores} for decoding and the CRF. "
        f"Each process starts in {at.start_seconds:.0f} s."
    )
    yield (
        "- Each step is multiplied by how often it is needed. Saving states, and copying results into DVC's "
        "cache, are not counted."
    )
    if at.free_device_bytes:
        yield "- Measured: networks in whole batches, k-means with all points and iterations."
    else:
        yield (
            "- Measured: networks in batches of at most 8 images, k-means on a part of its points and "
            "iterations. Taken for granted: an image takes as long in a whole batch, memory grows with it."
        )
    image_bytes = 3 * params.prepare.train_px**2
    source = (
        "memory, which can hold them; the first time the disk may be slower"
        if at.fits_memory(image_bytes)
        else "the disk of data/, because they are more than memory holds"
    )
    yield (
        f"- Unless the GPU holds the images ({at.num_train * image_bytes / 1e9:.0f} GB), they are read from "
        f"{source}. Host memory leaves out the cache of files."
    )
    yield (
        "- Disk is for the outputs alone. DVC keeps a copy of them in its cache, unless it links "
        "(`dvc config cache.type reflink,hardlink`). The raw files are not counted."
    )
    if not is_present(params):
        yield "- `prepare` was measured on images of flat squares at the published size."


def compare(rows: Sequence[Row], took: Mapping[str, float]) -> Iterator[str]:
    """A Markdown table of the projected and the real seconds of each stage.

    Args:
        rows: of the projection.
        took: seconds of the last run, by stage; `evaluate` runs as several.

    Raises:
        UserError: no stage has run here.
    """
    real = {
        row.stage: sum(seconds for name, seconds in took.items() if name.partition("@")[0] == row.stage)
        for row in rows
    }
    if not any(real.values()):
        raise UserError(".state/seconds.json: no stage has run here; run `dvc repro` first")
    yield "\n| stage | projected s | took s | projected / took |\n| --- | ---: | ---: | ---: |"
    for row in rows:
        if (seconds := real[row.stage]) > 0:
            yield f"| {row.stage} | {row.seconds:.1f} | {seconds:.1f} | {row.seconds / seconds:.2f} |"
    known = [row for row in rows if real[row.stage] > 0]
    projected, all_real = sum(row.seconds for row in known), sum(real[row.stage] for row in known)
    yield f"| **total** | {projected:.1f} | {all_real:.1f} | {projected / all_real:.2f} |"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument(
        "--preset", nargs="+", metavar="NAME", help=f"of presets/ (default: {' '.join(PRESETS)})"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--images",
        nargs=2,
        type=int,
        metavar=("TRAIN", "VAL"),
        help="numbers of images in place of the set's",
    )
    parser.add_argument("--check", action="store_true", help="compare params.yaml with the last run here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    os.environ.setdefault("QUIET", "1")  # the lines of runs that are none
    run(main)
