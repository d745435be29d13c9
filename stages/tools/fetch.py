"""Fetch the public parts of a data set from their owners.

A command of its own: no stage downloads anything. Run again after an interruption, it goes on.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from stages.readers.cityscapes.cityscapes import CITYSCAPES, CITYSCAPES_ARCHIVES
from stages.readers.cocostuff.parts import COCO_PARTS, Part
from stages.runtime.progress import say
from stages.settings.errors import UserError, run
from stages.tools.download import download, verify
from stages.tools.unpack import unpack

WAITING = ".fetch"  # below the data set: what is on its way


def main(argv: Sequence[str] | None = None) -> None:
    """Bring every part that is not there yet."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.fetch", description=__doc__)
    parser.add_argument("name", choices=("cocostuff", "cityscapes"), help="the data set")
    parser.add_argument("--to", type=Path, required=True, help="folder of the data set; made if need be")
    parser.add_argument(
        "--keep", action="store_true", help=f"keep the archives in {WAITING} below the folder"
    )
    args = parser.parse_args(argv)
    if args.name == "cityscapes":
        archives = ", ".join(sorted(set(CITYSCAPES_ARCHIVES.values())))
        raise UserError(
            f"cityscapes: its owner gives it to registered users alone; log in at {CITYSCAPES}, fetch "
            f"{archives} and unpack them in {args.to}, so that it holds leftImg8bit/ and gtFine/"
        )
    missing = [part for part in COCO_PARTS.values() if not _is_there(part, args.to)]
    _check_space(missing, args.to)
    for part in COCO_PARTS.values():
        if part in missing:
            _bring(part, args.to, keep=args.keep)
        else:
            print(f"fetch: {part.name}: is there in {args.to / part.to}", flush=True)
    if not args.keep:
        shutil.rmtree(args.to / WAITING, ignore_errors=True)
    print(f"fetch: all is in {args.to}; next: make preset NAME=cocostuff27 DATA={args.to}")


def _bring(part: Part, root: Path, *, keep: bool) -> None:
    print(f"fetch: {part.name}: {part.what}, from {part.url}", flush=True)
    waiting = root / WAITING / part.to  # two lists have one name
    archive = waiting / part.name
    if not archive.exists():
        download(part, waiting)
    verify(part, archive)
    verdict = (
        "sha256 as published" if part.sha256 else "no hash is published: checksums of its contents alone"
    )
    print(f"fetch: {part.name}: {archive.stat().st_size:,} bytes, {verdict}", flush=True)
    if part.brings:
        unpack(
            archive, [name for name in part.brings if not (root / part.to / name).exists()], root / part.to
        )
        if not keep:
            archive.unlink()
    else:
        (root / part.to).mkdir(parents=True, exist_ok=True)
        os.replace(archive, root / part.to / part.name)


def _is_there(part: Part, root: Path) -> bool:
    return all((root / part.to / name).exists() for name in part.brings or (part.name,))


def _check_space(parts: Sequence[Part], root: Path) -> None:
    """For each archive, and for what it is unpacked to, which is about as much again."""
    sizes = [part.size_bytes or 0 for part in parts]
    needed = sum(sizes) + max(sizes, default=0)
    existing = next(parent for parent in (root.absolute(), *root.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    say("fetch", parts=len(parts), needs_gb=needed / 1e9, free_gb=free / 1e9)
    if free < needed:
        raise UserError(
            f"{root}: fetching and unpacking needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            "make room, or name another folder with --to"
        )


if __name__ == "__main__":
    run(main)
