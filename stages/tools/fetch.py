"""Download COCO-Stuff from its publishers with curl.

Run the same command again after an interruption to resume. Downloads are verified against published hashes
and unpacked; all files stay inside the target folder. What is there, wherever the reader looks for it, is
counted and stays as it is. Cityscapes requires a login: download it manually.
"""

import argparse
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from stages.core.atomic import named_faults
from stages.core.hashes import file_sha256
from stages.readers.cocostuff.parts import COCO_PARTS, Part, folder_of
from stages.runtime.progress import say, track
from stages.runtime.script import run
from stages.settings.errors import UserError, raise_faults

WAITING = ".fetch"  # folder for incomplete downloads, inside the data set
CURL = ("curl", "--fail", "--location", "--retry", "5", "--continue-at", "-", "--progress-bar")


def main(argv: Sequence[str] | None = None) -> None:
    """Download and unpack every missing part."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.fetch", description=__doc__)
    parser.add_argument("name", choices=("cocostuff",), help="data set to download")
    parser.add_argument("--to", type=Path, required=True, help="folder of the data set; created if missing")
    args = parser.parse_args(argv)
    if shutil.which(CURL[0]) is None:
        raise UserError("fetch: curl is not installed; install it with the package manager of your system")
    with named_faults(args.to):
        missing = [part for part in COCO_PARTS.values() if _missing(part, args.to)]
        args.to.mkdir(parents=True, exist_ok=True)
        sizes = [part.size_bytes or 0 for part in missing]
        fetched = sum(file.stat().st_size for part in missing if (file := _archive(part, args.to)).is_file())
        _check_space(args.to, sum(sizes) + max(sizes, default=0) - fetched)
        for part in missing:
            _bring(part, args.to)
    shutil.rmtree(args.to / WAITING, ignore_errors=True)
    raise_faults(fault for part in COCO_PARTS.values() for fault in _miscounts(part, args.to))
    print(f"fetch: {args.to} is complete; next: make preset NAME=cocostuff27 DATA={args.to}")


def _missing(part: Part, root: Path) -> list[str]:
    """The folders of an archive that are not there, wherever the reader looks for them; or the file."""
    if not part.brings:
        return [] if (root / part.to / part.name).exists() else [part.name]
    return [name for name in part.brings if not _has_files(root / folder_of(root, part, name)[0])]


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _miscounts(part: Part, root: Path) -> Iterator[str]:
    """Name the folders with another number of files than the archive has, as after a copy that broke off."""
    for name, count in part.brings.items():
        folder, found = folder_of(root, part, name)
        if len(found) != count:
            yield (
                f"{root / folder}: has {len(found):,} {part.suffix} files, but {part.name} has {count:,}; to "
                "fetch them all, move this folder away and run the same command again; if these files are "
                f"all that you want, leave it, and go on with make preset NAME=cocostuff27 DATA={root}"
            )


def _archive(part: Part, root: Path) -> Path:
    """Where a part is while it is downloaded; the two lists share one name."""
    return root / WAITING / part.to / part.name


def _check_space(folder: Path, needed: int) -> None:
    """Check the disk space for what is missing of the archives and for their content, about as large."""
    free = shutil.disk_usage(folder).free
    say("fetch", needs_gb=needed / 1e9, free_gb=free / 1e9)
    if free < needed:
        raise UserError(
            f"{folder}: needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; free disk space, "
            "or choose another folder with --to"
        )


def _bring(part: Part, root: Path) -> None:
    file = _archive(part, root)
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetch: {part.name}: {part.what}, from {part.url}", flush=True)
    if not (file.exists() and file.stat().st_size == part.size_bytes):
        ended = subprocess.run([*CURL, "--output", str(file), part.url], check=False)
        if ended.returncode:
            raise UserError(
                f"{part.url}: curl failed with exit code {ended.returncode} (see above); {file} keeps the "
                "partial download; run the same command again to resume"
            )
    _check_hash(part, file)
    if part.brings:
        to = root / part.to
        _unpack(file, _missing(part, root), to)
        file.unlink()
    else:
        (root / part.to).mkdir(parents=True, exist_ok=True)
        os.replace(file, root / part.to / part.name)


def _check_hash(part: Part, file: Path) -> None:
    if not part.sha256:
        print(f"fetch: {part.name}: no published hash; using the checksums inside the archive", flush=True)
        return
    found = file_sha256(file)
    if found != part.sha256:
        file.unlink()
        raise UserError(
            f"{part.url}: has sha256 {found}, but the published hash is {part.sha256}; the download was "
            "deleted. Run the same command again; if this repeats, the publisher has changed the file"
        )


def _unpack(archive: Path, folders: Sequence[str], to: Path) -> None:
    """Unpack some folders of an archive; move them into place only when all are complete."""
    staged = archive.with_suffix(".unpacking")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [one for one in opened.infolist() if one.filename.split("/")[0] in folders]
            for member in members:
                if ".." in PurePosixPath(member.filename).parts:
                    raise UserError(
                        f"{archive}: {member.filename!r} is outside its own folder; nothing was unpacked"
                    )
            _check_space(to.parent, sum(member.file_size for member in members))
            for member in track(members, f"unpack {archive.name}", unit="file"):
                opened.extract(member, staged)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"{archive}: damaged archive ({error}); delete it and run the command again"
        ) from error
    if missing := [name for name in folders if not (staged / name).is_dir()]:
        raise UserError(
            f"{archive}: has no folder {', '.join(missing)}; delete it and download the correct archive"
        )
    to.mkdir(parents=True, exist_ok=True)
    for name in folders:
        os.replace(staged / name, to / name)
    shutil.rmtree(staged)


if __name__ == "__main__":
    run(main)
