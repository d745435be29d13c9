"""Downloading COCO-Stuff with curl, from a server on this machine that breaks off, lies and sets traps."""

import hashlib
import io
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.readers.cocostuff.parts import COCO_PARTS, Part
from stages.settings.errors import UserError
from stages.tools import fetch

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@dataclass
class Server:
    """Files by path, and how each request is to be treated."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    breaks_after: list[int] = field(default_factory=list)  # bytes of each answer in turn; then all are whole
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and range


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = 0
            if wanted:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            most = state.breaks_after.pop(0) if state.breaks_after else len(content)
            self.wfile.write(content[start : start + most])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


IMAGES = zipped({f"train2017/{n:012d}.jpg": bytes([n]) * 300 for n in range(4)})
LABELS = zipped({f"{split}2017/{n}.png": bytes([n]) * 50 for split in ("train", "val") for n in range(2)})
LIST = b"000000000001\n"


@pytest.fixture
def parts(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    """An archive with a published hash, one without, and a list."""
    server.files = {"/train2017.zip": IMAGES, "/maps.zip": LABELS, "/list.txt": LIST}
    parts = {
        "images": Part(
            f"{server.url}/train2017.zip", "images", "images",
            len(IMAGES), hashlib.sha256(IMAGES).hexdigest(),
            {"train2017": 4}, ("images/{}", "{}"), ".jpg",
        ),
        "maps": Part(
            f"{server.url}/maps.zip", "label maps", "maps", None, "",
            {"train2017": 2, "val2017": 2}, ("maps/{}", "{}"), ".png",
        ),
        "list": Part(
            f"{server.url}/list.txt", "a list", "curated", len(LIST), hashlib.sha256(LIST).hexdigest()
        ),
    }  # fmt: skip
    monkeypatch.setattr(fetch, "COCO_PARTS", parts)
    return parts


def bring(root: Path) -> None:
    fetch.main(["cocostuff", "--to", str(root)])


def fault(root: Path) -> str:
    with pytest.raises(UserError) as raised:
        bring(root)
    return str(raised.value)


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def content(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


WHOLE = {
    **{f"images/train2017/{n:012d}.jpg": bytes([n]) * 300 for n in range(4)},
    **{f"maps/{split}2017/{n}.png": bytes([n]) * 50 for split in ("train", "val") for n in range(2)},
    "curated/list.txt": LIST,
}


def test_everything_arrives_and_nothing_is_fetched_twice(
    server: Server, parts: dict[str, Part], tmp_path: Path
) -> None:
    bring(tmp_path / "coco")
    assert content(tmp_path / "coco") == WHOLE
    asked = len(server.asked)
    bring(tmp_path / "coco")
    assert len(server.asked) == asked


def test_a_download_that_broke_off_goes_on(server: Server, parts: dict[str, Part], tmp_path: Path) -> None:
    server.breaks_after = [100]
    message = fault(tmp_path)
    assert message.startswith(f"{server.url}/train2017.zip: curl failed with exit code ")
    waiting = tmp_path / ".fetch/images/train2017.zip"
    assert message.endswith(f"{waiting} keeps the partial download; run the same command again to resume")
    bring(tmp_path)
    assert ("/train2017.zip", "bytes=100-") in server.asked
    assert content(tmp_path) == WHOLE


def test_a_folder_that_is_there_stays_as_it_is(parts: dict[str, Part], tmp_path: Path) -> None:
    """From an end between the two folders of one archive, or brought by hand."""
    mine = {f"maps/val2017/{n}.png": b"mine" for n in range(2)}
    write(tmp_path, mine)
    bring(tmp_path)
    assert content(tmp_path) == WHOLE | mine


def test_what_lies_elsewhere_where_the_reader_finds_it_is_not_fetched(
    server: Server, parts: dict[str, Part], tmp_path: Path
) -> None:
    mine = {f"train2017/{n}.jpg": b"mine" for n in range(4)}
    write(tmp_path, mine)
    bring(tmp_path)
    assert "/train2017.zip" not in [path for path, _ in server.asked]
    expected = {name: data for name, data in WHOLE.items() if not name.startswith("images/")}
    assert content(tmp_path) == expected | mine


@pytest.mark.parametrize(("file", "number"), [("000.jpg", 1), ("notes.txt", 0)])
def test_a_folder_with_another_number_of_files_is_named_with_the_ways_out(
    parts: dict[str, Part], tmp_path: Path, file: str, number: int
) -> None:
    """As after unpacking by hand that broke off; all else is fetched."""
    mine = {f"images/train2017/{file}": b"mine"}
    write(tmp_path, mine)
    assert fault(tmp_path) == (
        f"{tmp_path}/images/train2017: has {number} .jpg files, but train2017.zip has 4; to fetch them all, "
        "move this folder away and run the same command again; if these files are all that you want, leave "
        f"it, and go on with make preset NAME=cocostuff27 DATA={tmp_path}"
    )
    expected = {name: data for name, data in WHOLE.items() if not name.startswith("images/")}
    assert content(tmp_path) == expected | mine
    shutil.rmtree(tmp_path / "images/train2017")
    bring(tmp_path)
    assert content(tmp_path) == WHOLE


def test_another_file_than_the_published_one_is_deleted(
    server: Server, parts: dict[str, Part], tmp_path: Path
) -> None:
    right = server.files["/train2017.zip"]
    server.files["/train2017.zip"] = right[:-1] + b"x"
    assert f"but the published hash is {parts['images'].sha256}; the download was deleted" in fault(tmp_path)
    assert content(tmp_path) == {}
    server.files["/train2017.zip"] = right
    bring(tmp_path)
    assert content(tmp_path) == WHOLE


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: zipped({"train2017/../../x": b"x"}), r"'train2017/../../x' is outside its own folder"),
        (
            lambda: zipped({"train2017/a.png": b"x"}),
            "has no folder val2017; delete it and download the correct archive",
        ),
        (lambda: LABELS[:-30], "damaged archive"),
        (lambda: LABELS.replace(bytes([1]) * 50, bytes([2]) * 50), "damaged archive"),
    ],
    ids=["leads out", "lacks a folder", "cut short", "wrong checksum"],
)
def test_an_archive_that_cannot_be_right_is_not_used(
    server: Server, parts: dict[str, Part], tmp_path: Path, spoil: object, message: str
) -> None:
    server.files["/maps.zip"] = spoil()  # type: ignore[operator]
    assert message in fault(tmp_path / "coco")
    assert not (tmp_path / "coco/maps").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]


def test_a_disk_that_is_too_small(
    parts: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert f"{tmp_path}: needs 0.0 GB, but only 0.0 GB are free; free disk space" in fault(tmp_path)


def test_what_is_fetched_already_needs_no_more_space(
    parts: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives with a known size, and once more the largest of them, unpacked."""
    needed = len(IMAGES) + len(LIST) + len(IMAGES)
    partial = tmp_path / ".fetch/images/train2017.zip"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(IMAGES[:100])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 101))
    assert "needs 0.0 GB" in fault(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 100))
    bring(tmp_path)
    assert content(tmp_path) == WHOLE


def test_a_file_where_the_folder_should_be(parts: dict[str, Part], tmp_path: Path) -> None:
    (tmp_path / "coco").write_text("mine")
    for to in ("coco", "coco/deep"):
        assert fault(tmp_path / to) == (
            f"{tmp_path / to}: cannot be written, because {tmp_path / 'coco'} is a file; choose another "
            "place, or move that file away"
        )
    assert (tmp_path / "coco").read_text() == "mine"


def test_curl_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert (
        fault(tmp_path) == "fetch: curl is not installed; install it with the package manager of your system"
    )


def test_what_is_fetched_is_what_the_reader_reads() -> None:
    assert {f"{part.to}/{name}" for part in COCO_PARTS.values() for name in part.brings or (part.name,)} == {
        "images/train2017", "images/val2017", "stuffthingmaps/train2017", "stuffthingmaps/val2017",
        "curated/train2017/Coco164kFull_Stuff_Coarse_7.txt",
        "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt",
    }  # fmt: skip
