"""Download the public parts of COCO-Stuff from their owners, with curl.

After an interruption the same command goes on where it stopped. Files are checked against published hashes,
archives are unpacked, and nothing is written outside of the folder. Cityscapes needs its owner's login.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from stages.readers.cocostuff.parts import COCO_PARTS, Part
from stages.runtime.progress import say, track
from stages.runtime.script import run
from stages.settings.errors import UserError

WAITING = ".fetch"  # folder below the data set for what is on its way
CURL = ("curl", "--fail", "--location", "--retry", "5", "--continue-at", "-", "--progress-bar")


def main(argv: Sequence[str] | None = None) -> None:
    """Download and unpack every part that is not there yet."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.fetch", description=__doc__)
    parser.add_argument("name", choices=("cocostuff",), help="the data set")
    parser.add_argument("--to", type=Path, required=True, help="folder of the data set; made if need be")
    args = parser.parse_args(argv)
    if shutil.which(CURL[0]) is None:
        raise UserError("fetch: needs curl, and there is none; install it with your system's packages")
    missing = [part for part in COCO_PARTS.values() if not _is_there(part, args.to)]
    args.to.mkdir(parents=True, exist_ok=True)
    sizes = [part.size_bytes or 0 for part in missing]
    _check_space(args.to, sum(sizes) + max(sizes, default=0))
    for part in missing:
        _bring(part, args.to)
    shutil.rmtree(args.to / WAITING, ignore_errors=True)
    print(f"fetch: all is in {args.to}; next: make preset NAME=cocostuff27 DATA={args.to}")


def _is_there(part: Part, root: Path) -> bool:
    return all((root / part.to / name).exists() for name in part.brings or (part.name,))


def _check_space(folder: Path, needed: int) -> None:
    """Archives, and what they are unpacked to, which is about as much again."""
    free = shutil.disk_usage(folder).free
    say("fetch", needs_gb=needed / 1e9, free_gb=free / 1e9)
    if free < needed:
        raise UserError(
            f"{folder}: needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; make room, or name "
            "another folder with --to"
        )


def _bring(part: Part, root: Path) -> None:
    file = root / WAITING / part.to / part.name  # two lists have one name
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetch: {part.name}: {part.what}, from {part.url}", flush=True)
    if not (file.exists() and file.stat().st_size == part.size_bytes):
        ended = subprocess.run([*CURL, "--output", str(file), part.url], check=False)
        if ended.returncode:
            raise UserError(
                f"{part.url}: curl ended with {ended.returncode} (see above); what has come stays in {file}, "
                "and the same command goes on from there"
            )
    _check_hash(part, file)
    if part.brings:
        _unpack(file, part.brings, root / part.to)
        file.unlink()
    else:
        (root / part.to).mkdir(parents=True, exist_ok=True)
        os.replace(file, root / part.to / part.name)


def _check_hash(part: Part, file: Path) -> None:
    if not part.sha256:
        print(f"fetch: {part.name}: no hash is published; the archive's own checksums are used", flush=True)
        return
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != part.sha256:
        file.unlink()
        raise UserError(
            f"{part.url}: has sha256 {found}, but {part.sha256} was published; the file is deleted. Run the "
            "same command again; if it says so again, the owner offers another file"
        )


def _unpack(archive: Path, folders: Sequence[str], to: Path) -> None:
    """Some folders of an archive, each put in its place at once when all of it is there."""
    staged = archive.with_suffix(".unpacking")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [one for one in opened.infolist() if one.filename.split("/")[0] in folders]
            for member in members:
                if ".." in PurePosixPath(member.filename).parts:
                    raise UserError(
                        f"{archive}: {member.filename!r} leads out of its folder; nothing is unpacked"
                    )
            _check_space(to.parent, sum(member.file_size for member in members))
            for member in track(members, f"unpack {archive.name}", unit="file"):
                opened.extract(member, staged)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{archive}: is a damaged archive ({error}); delete it and run again") from error
    if missing := [name for name in folders if not (staged / name).is_dir()]:
        raise UserError(f"{archive}: has no folder {', '.join(missing)}; it is another archive")
    to.mkdir(parents=True, exist_ok=True)
    for name in folders:
        os.replace(staged / name, to / name)
    shutil.rmtree(staged)


if __name__ == "__main__":
    run(main)
