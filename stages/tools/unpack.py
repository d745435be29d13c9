"""A zip archive of images that is not trusted: everything is checked before anything is written."""

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from stages.runtime.progress import track
from stages.settings.errors import UserError

MOST_MEMBERS = 1_000_000
MOST_MEMBER_BYTES = 1 << 28
MOST_RATIO = 10  # of all contents to the archive: images hardly shrink, bombs do
ENCRYPTED = 1  # flag bit


def unpack(archive: Path, folders: Sequence[str], to: Path) -> None:
    """Put `folders` of the archive below `to`, each at once when all of it is there.

    Args:
        archive: a zip file; what it holds beside the folders is left in it.
        folders: at its top level.
        to: made where there is none.

    Raises:
        UserError: it is no archive, is damaged, lacks a folder, or could write outside of `to`, fill the
            disk or bring something else than files.
    """
    staged = archive.with_suffix(".unpacking")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        _extract(archive, folders, staged)
        to.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            os.replace(staged / folder, to / folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{archive}: is a damaged archive ({error}); delete it and fetch it again") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _extract(archive: Path, folders: Sequence[str], staged: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = _checked(archive, opened, folders)
        _check_space(archive, members)
        for member in track(members, f"unpack {archive.name}", unit="file"):
            target = staged / member.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(member) as source, target.open("xb") as file:  # a wrong CRC raises at the end
                shutil.copyfileobj(source, file)


def _checked(archive: Path, opened: zipfile.ZipFile, folders: Sequence[str]) -> list[zipfile.ZipInfo]:
    """The members to unpack, all of them files below the folders."""
    infos = opened.infolist()
    if len(infos) > MOST_MEMBERS:
        raise UserError(f"{archive}: holds {len(infos):,} files, more than {MOST_MEMBERS:,}; it is not used")
    names: set[str] = set()
    for info in infos:
        reason = _objection(info)
        if reason is None and info.filename.casefold() in names:
            reason = "is there twice"
        if reason is not None:
            raise UserError(f"{archive}: {info.filename!r} {reason}; an archive of images has no such thing")
        names.add(info.filename.casefold())
    total, limit = sum(info.file_size for info in infos), MOST_RATIO * archive.stat().st_size
    if total > limit:
        raise UserError(
            f"{archive}: would unpack to {total:,} bytes, more than {MOST_RATIO} times its size; it is not "
            "used"
        )
    members = [
        info for info in infos if not info.is_dir() and PurePosixPath(info.filename).parts[0] in folders
    ]
    for folder in folders:
        if not any(member.filename.startswith(f"{folder}/") for member in members):
            raise UserError(f"{archive}: holds no {folder}/; it is another archive")
    return members


def _objection(info: zipfile.ZipInfo) -> str | None:
    path, kind = PurePosixPath(info.filename), stat.S_IFMT(info.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in info.filename:
        return "leads out of its folder"
    if not path.parts or not info.filename.isprintable():
        return "is no name of a file"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & ENCRYPTED:
        return "is encrypted"
    if info.file_size > MOST_MEMBER_BYTES:
        return f"has {info.file_size:,} bytes, more than {MOST_MEMBER_BYTES:,}"
    return None


def _check_space(archive: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    needed, free = sum(info.file_size for info in members), shutil.disk_usage(archive.parent).free
    if free < needed:
        raise UserError(
            f"{archive}: unpacking needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; make room"
        )
