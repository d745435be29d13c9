"""Fetching raw data, from a server on this machine that breaks off, lies and sends traps."""

import hashlib
import io
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stages.readers.cocostuff.parts import COCO_PARTS, Part
from stages.settings.errors import UserError
from stages.tools import download, fetch, unpack


@dataclass
class Server:
    """Files by path, and how each request is to be treated."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    breaks_after: list[int] = field(default_factory=list)  # bytes of each answer in turn; then all are whole
    knows_ranges: bool = True
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
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            start = 0
            if wanted and state.knows_ranges and self.headers.get("If-Range") == tag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", tag)
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


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(download, "CHUNK_BYTES", 64)


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
            len(IMAGES), hashlib.sha256(IMAGES).hexdigest(), ("train2017",),
        ),
        "maps": Part(f"{server.url}/maps.zip", "label maps", "maps", brings=("train2017", "val2017")),
        "list": Part(
            f"{server.url}/list.txt", "a list", "curated", len(LIST), hashlib.sha256(LIST).hexdigest()
        ),
    }  # fmt: skip
    monkeypatch.setattr(fetch, "COCO_PARTS", parts)
    return parts


def bring(root: Path, *flags: str) -> None:
    fetch.main(["cocostuff", "--to", str(root), *flags])


def content(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


WHOLE = {
    **{f"images/train2017/{n:012d}.jpg": bytes([n]) * 300 for n in range(4)},
    **{f"maps/{split}2017/{n}.png": bytes([n]) * 50 for split in ("train", "val") for n in range(2)},
    "curated/list.txt": LIST,
}


def test_everything_arrives_and_nothing_else(
    server: Server, parts: dict[str, Part], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "coco"
    bring(root)
    assert content(root) == WHOLE
    printed = capsys.readouterr().out
    assert f"fetch: train2017.zip: {len(IMAGES):,} bytes, sha256 as published" in printed
    assert f"fetch: maps.zip: {len(LABELS):,} bytes, no hash is published" in printed
    asked = len(server.asked)
    bring(root)
    assert len(server.asked) == asked
    assert "fetch: train2017.zip: is there in" in capsys.readouterr().out


def test_a_broken_connection_is_gone_on_with(server: Server, parts: dict[str, Part], tmp_path: Path) -> None:
    server.breaks_after = [100, 50, 200]
    bring(tmp_path / "coco")
    assert content(tmp_path / "coco") == WHOLE
    ranges = [wanted for path, wanted in server.asked if path == "/train2017.zip"]
    assert ranges == [None, "bytes=100-", "bytes=150-", "bytes=350-"]


def test_after_a_kill_the_next_run_goes_on(
    server: Server, parts: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        server.breaks_after = [128, 0]
        with pytest.raises(UserError, match=r"the connection broke off\); 128 bytes are kept in .*zip\.part"):
            bring(tmp_path / "coco")
    assert not (tmp_path / "coco/images").exists()
    server.asked.clear()
    bring(tmp_path / "coco")
    assert server.asked[0] == ("/train2017.zip", "bytes=128-")
    assert content(tmp_path / "coco") == WHOLE


@pytest.mark.parametrize("change", ["file", "ranges"])
def test_another_file_or_no_ranges_begins_anew(
    server: Server, parts: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        server.files["/train2017.zip"] = bytes(len(IMAGES)) if change == "file" else IMAGES
        server.breaks_after = [128, 0]
        with pytest.raises(UserError, match="broke off"):
            bring(tmp_path / "coco")
    server.files["/train2017.zip"], server.knows_ranges = IMAGES, change != "ranges"
    bring(tmp_path / "coco")
    assert content(tmp_path / "coco") == WHOLE


def test_a_wrong_hash_is_thrown_away(server: Server, parts: dict[str, Part], tmp_path: Path) -> None:
    server.files["/train2017.zip"] = bytes(len(IMAGES))
    with pytest.raises(UserError, match=rf"but {parts['images'].sha256} was published; it was thrown away"):
        bring(tmp_path / "coco")
    assert content(tmp_path / "coco") == {}
    server.files["/train2017.zip"] = IMAGES
    bring(tmp_path / "coco")
    assert content(tmp_path / "coco") == WHOLE


def test_a_wrong_size_is_refused_before_it_is_read(
    server: Server, parts: dict[str, Part], tmp_path: Path
) -> None:
    server.files["/train2017.zip"] = IMAGES + b"more"
    with pytest.raises(UserError, match=f"has {len(IMAGES) + 4:,} bytes, but {len(IMAGES):,} were published"):
        bring(tmp_path / "coco")


def test_what_the_server_lacks_is_said(server: Server, parts: dict[str, Part], tmp_path: Path) -> None:
    del server.files["/list.txt"]
    with pytest.raises(
        UserError, match=r"/list\.txt: the server says 404 Not Found; see whether it has moved"
    ):
        bring(tmp_path / "coco")


def test_an_archive_by_hand_is_verified_and_kept_if_asked(
    server: Server, parts: dict[str, Part], tmp_path: Path
) -> None:
    archive = tmp_path / "coco/.fetch/images/train2017.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(IMAGES)
    bring(tmp_path / "coco", "--keep")
    assert archive.exists()
    assert all(path != "/train2017.zip" for path, _ in server.asked)


def test_a_folder_that_is_there_is_left_alone(server: Server, parts: dict[str, Part], tmp_path: Path) -> None:
    own = tmp_path / "coco/maps/train2017/own.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"own")
    bring(tmp_path / "coco")
    maps = {name for name in content(tmp_path / "coco") if name.startswith("maps/")}
    assert maps == {"maps/train2017/own.png", "maps/val2017/0.png", "maps/val2017/1.png"}


def test_cityscapes_needs_its_owners_login(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"registered users alone; log in at https://www.cityscapes-dataset.com"
    ):
        fetch.main(["cityscapes", "--to", str(tmp_path / "city")])
    assert not (tmp_path / "city").exists()


def test_a_full_disk_is_noticed_first(
    server: Server, parts: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = Part(parts["images"].url, "images", "images", 10**18, brings=("train2017",))
    monkeypatch.setattr(fetch, "COCO_PARTS", {"images": huge})
    with pytest.raises(UserError, match=r"needs 2000000000\.0 GB, and .* GB are free; make room"):
        bring(tmp_path / "coco")
    assert server.asked == []


# Archives that are damaged or hostile


def member(name: str, mode: int = 0, data: bytes = b"x") -> Callable[[zipfile.ZipFile], None]:
    def write(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name  # as it is: the constructor mends some names
        info.external_attr = mode << 16
        archive.writestr(info, data)

    return write


HOSTILE = {
    "a way up": (member("../evil.jpg"), "leads out of its folder"),
    "a way up inside": (member("train2017/../../evil.jpg"), "leads out of its folder"),
    "an absolute path": (member("/tmp/evil.jpg"), "leads out of its folder"),
    "a drive": (member("C:evil.jpg"), "leads out of its folder"),
    "backslashes": (member("train2017\\..\\evil.jpg"), "leads out of its folder"),
    "a link": (member("train2017/link", stat.S_IFLNK | 0o777, b"/etc/passwd"), "is a link or a device"),
    "a device": (member("train2017/device", stat.S_IFBLK | 0o600), "is a link or a device"),
    "a control character": (member("train2017/a\nb.jpg"), "is no name of a file"),
    "a second one": (member("train2017/1.JPG"), "is there twice"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_writes_nothing(tmp_path: Path, kind: str) -> None:
    write, rule = HOSTILE[kind]
    path = tmp_path / "in/train2017.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train2017/1.jpg", b"1")
        write(archive)
    with pytest.raises(UserError, match=rf"{rule}; an archive of images has no such thing"):
        unpack.unpack(path, ["train2017"], tmp_path / "out")
    assert content(tmp_path) == {"in/train2017.zip": path.read_bytes()}


def test_a_bomb_is_not_lit(tmp_path: Path) -> None:
    path = tmp_path / "train2017.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train2017/1.jpg", bytes(10**6))
    with pytest.raises(UserError, match="would unpack to 1,000,000 bytes, more than 10 times its size"):
        unpack.unpack(path, ["train2017"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, damage: str) -> None:
    spoiled = bytearray(IMAGES)
    spoiled[100] ^= 255
    path = tmp_path / "in/train2017.zip"
    path.parent.mkdir()
    path.write_bytes({"cut": IMAGES[:-40], "flipped": bytes(spoiled), "text": b"<html>sorry</html>"}[damage])
    with pytest.raises(UserError, match=r"is a damaged archive \(.+\); delete it and fetch it again"):
        unpack.unpack(path, ["train2017"], tmp_path / "out")
    assert list(content(tmp_path)) == ["in/train2017.zip"]


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "val2017.zip"
    path.write_bytes(IMAGES)
    with pytest.raises(UserError, match="holds no val2017/; it is another archive"):
        unpack.unpack(path, ["val2017"], tmp_path / "out")


def test_what_is_fetched_is_what_the_reader_reads() -> None:
    assert {f"{part.to}/{name}" for part in COCO_PARTS.values() for name in part.brings or (part.name,)} == {
        "images/train2017", "images/val2017", "stuffthingmaps/train2017", "stuffthingmaps/val2017",
        "curated/train2017/Coco164kFull_Stuff_Coarse_7.txt",
        "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt",
    }  # fmt: skip
