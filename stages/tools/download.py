"""One file from a web server: resumed where it broke off, arrived whole, held against size and hash."""

import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from stages.readers.cocostuff.parts import Part
from stages.settings.errors import UserError

CHUNK_BYTES = 1 << 20
ATTEMPTS = 5  # in a row that bring nothing new
PAUSE_SECONDS = 3.0
TIMEOUT_SECONDS = 60
UNSTATED_MOST_BYTES = 4 << 30  # of a file whose size nobody states


def download(part: Part, folder: Path) -> Path:
    """Bring the file into `folder`; what an earlier run left there is gone on with.

    Raises:
        UserError: the server does not give it, or gives something of another size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{part.name}.part"
    failures = 0
    while not _is_whole(partial):
        before, reason = _size(partial), "the connection broke off"
        try:
            _continue(part, partial)
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code < 500:
                raise UserError(f"{part.url}: the server says {reason}; see whether it has moved") from error
        except (OSError, HTTPException) as error:
            reason = str(error)
        failures = failures + 1 if _size(partial) <= before else 0
        if failures == ATTEMPTS:
            raise UserError(
                f"{part.url}: cannot be read ({reason}); {_size(partial):,} bytes are kept in {partial}, and "
                "the same command goes on from there"
            )
        if failures:
            time.sleep(PAUSE_SECONDS)
    arrived = folder / part.name
    os.replace(partial, arrived)
    _tag(partial).unlink()
    return arrived


def verify(part: Part, arrived: Path) -> None:
    """Hold a file against the published hash, where there is one.

    Raises:
        UserError: it is another; the file is thrown away.
    """
    if not part.sha256:
        return
    with arrived.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != part.sha256:
        arrived.unlink()
        raise UserError(
            f"{part.url}: has sha256 {found}, but {part.sha256} was published; it was thrown away. Run the "
            "same command again; if it says so again, the file there is another one"
        )


def _continue(part: Part, partial: Path) -> None:
    """Append what is missing; all anew where the server has another file by now, or knows no ranges."""
    offset, headers = _size(partial), {}
    tag = _tag(partial).read_text().split("\n")[0] if _tag(partial).exists() else ""
    if offset and tag:
        headers = {"Range": f"bytes={offset}-", "If-Range": tag}  # another file comes whole
    request = urllib.request.Request(part.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        known = response.headers
        if response.status != 206 or not known.get("Content-Range", "").startswith(f"bytes {offset}-"):
            offset = 0
            partial.unlink(missing_ok=True)
        total = offset + int(known.get("Content-Length") or 0)
        _check_size(part, total)
        _tag(partial).write_text(f"{known.get('ETag') or known.get('Last-Modified') or ''}\n{total}")
        with partial.open("ab") as file:
            for chunk in _shown(response, part, offset, total):
                file.write(chunk)


def _shown(response: HTTPResponse, part: Part, offset: int, total: int) -> Iterator[bytes]:
    """Chunks of the answer, with a bar of what has come."""
    with tqdm(total=total, initial=offset, desc=part.name, unit="B", unit_scale=True, mininterval=1) as bar:
        while chunk := response.read(CHUNK_BYTES):
            bar.update(len(chunk))
            yield chunk


def _is_whole(partial: Path) -> bool:
    if not partial.exists() or not _tag(partial).exists():
        return False
    return _size(partial) == int(_tag(partial).read_text().split("\n")[1])


def _check_size(part: Part, total: int) -> None:
    if not total:
        raise UserError(
            f"{part.url}: the server states no size, so nothing tells when it is whole; try later"
        )
    if part.size_bytes is not None and total != part.size_bytes:
        raise UserError(
            f"{part.url}: has {total:,} bytes, but {part.size_bytes:,} were published; it is another "
            "file, or something on the way answers in the server's place"
        )
    if part.size_bytes is None and total > UNSTATED_MOST_BYTES:
        raise UserError(
            f"{part.url}: has {total:,} bytes, more than {part.what} can have; it is another file"
        )


def _tag(partial: Path) -> Path:
    """Holds which version of the file the part is of, and its size."""
    return partial.with_suffix(".tag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
