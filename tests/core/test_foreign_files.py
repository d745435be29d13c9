"""Files from elsewhere, damaged in every way: a message of ours or a result, never a traceback or a hang."""

import contextlib
import functools
import io
import json
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.core.artefacts import read_array, read_csv, read_json
from stages.core.images import COLUMNS, open_images, read_index
from stages.core.tensors import read_tensors, write_tensors
from stages.dataset.decode import decode_image
from stages.dataset.label_maps import decode_labels
from stages.dataset.taxonomy import Taxonomy, mapped, plain
from stages.dataset.truth import read_truth
from stages.postprocessing.score_maps import open_scores
from stages.settings.errors import UserError
from stages.settings.params import read
from tests.datasets import REPOSITORY

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


def _image(form: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 4, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _safetensors() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        write_tensors(path, {"centroids": torch.eye(3), "b": torch.arange(4)}, {"pixel_k": 3})
        return path.read_bytes()


@st.composite
def spoiled(draw: st.DrawFn, *originals: bytes) -> bytes:
    """A file with some bytes changed, cut off, doubled or put in."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(("set", "cut", "insert", "drop"))):
            case "set" if place < len(content):
                content[place] = draw(st.integers(0, 255))
            case "cut":
                del content[place:]
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=8))
            case _:
                del content[place : place + draw(st.integers(1, 16))]
    return bytes(content)


def _only_user_errors(read_it: Callable[[], object]) -> None:
    with contextlib.suppress(UserError):
        read_it()


def _deep(form: str) -> bytes:
    """A picture with 16 bits per pixel, of which 12 are used."""
    pixels = np.random.default_rng(0).integers(0, 4096, (9, 7), dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def _deep_color() -> bytes:
    """A PNG with three channels of 16 bits, which Pillow reads and does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    values = np.random.default_rng(0).integers(0, 4096, (9, 7, 3)).astype(">u2")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 9, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in values)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def _pages() -> bytes:
    pages = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in range(3)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


PICTURES = [
    *(_image(form, mode) for form in FORMATS for mode in ("RGB", "L")),
    *(_image("PNG", mode) for mode in ("RGBA", "LA")),
    *(_deep(form) for form in ("PNG", "TIFF")),
    _deep_color(),
    _pages(),
]
MAPS = [
    *(_image(form, mode) for form in ("PNG", "BMP", "TIFF", "GIF") for mode in ("L", "P")),
    _image("PNG", "RGB"),
    _deep("PNG"),
]
CLASSES = ("sky", "grass", "sand")
TAXONOMIES = [plain(CLASSES), mapped(CLASSES, "value,class\n0,sky\n#000000,sky\n#010203,sand\n")]


@settings(max_examples=150)
@given(st.one_of(spoiled(*PICTURES), st.binary(max_size=64)), st.sampled_from((8, 12, 16)))
def test_images(content: bytes, bits: int) -> None:
    _only_user_errors(lambda: decode_image(content, bits=bits))


@settings(max_examples=80)
@given(st.one_of(spoiled(*MAPS), st.binary(max_size=64)), st.sampled_from(TAXONOMIES))
def test_label_maps(content: bytes, taxonomy: Taxonomy) -> None:
    for by_gray in (False, True):
        _only_user_errors(functools.partial(decode_labels, content, taxonomy, by_gray=by_gray))


@settings(max_examples=80)
@given(st.one_of(st.text(max_size=80), st.text(alphabet="value,clas#0f5\n sky", max_size=80)))
def test_a_mapping_of_values(text: str) -> None:
    _only_user_errors(lambda: mapped(CLASSES, text))
    _only_user_errors(lambda: mapped(CLASSES, f"value,class\n{text}"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


ARRAYS = [
    _npy(np.zeros(shape, kind)) for shape, kind in (((2, 4, 4, 3), "u1"), ((2, 3, 2, 2), "f2"), ((), "i8"))
]


@settings(max_examples=80)
@given(content=st.one_of(spoiled(*ARRAYS), st.binary(max_size=64)))
def test_arrays(folder: Path, content: bytes) -> None:
    (path := folder / "a.npy").write_bytes(content)
    _only_user_errors(lambda: read_array(path))
    _only_user_errors(lambda: read_array(path, memory_map=True))
    _only_user_errors(lambda: open_scores(path, 2))


def test_an_array_of_objects_is_not_unpickled(folder: Path) -> None:
    np.save(path := folder / "evil.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"evil\.npy: not a \.npy array \(.*Python objects"):
        read_array(path)


@pytest.mark.parametrize("shape", ["(9223372036854775807,)", "(1000000, 1000000, 1000000)", "(-5,)"])
@pytest.mark.parametrize("memory_map", [False, True])
def test_an_array_of_an_absurd_size_takes_no_memory(folder: Path, shape: str, memory_map: bool) -> None:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    (path := folder / "huge.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    )
    with pytest.raises(UserError, match=r"huge\.npy: not a \.npy array"):
        read_array(path, memory_map=memory_map)


@settings(max_examples=80)
@given(content=st.one_of(spoiled(_safetensors()), st.binary(max_size=64)))
@example(content=(2**62).to_bytes(8, "little") + b"{}")
@example(content=(2).to_bytes(8, "little") + b"{}")
@example(content=(2).to_bytes(8, "little") + b"[]")
def test_safetensors(folder: Path, content: bytes) -> None:
    (path := folder / "a.safetensors").write_bytes(content)
    _only_user_errors(lambda: read_tensors(path, "centroids"))


@settings(max_examples=60)
@given(content=st.one_of(spoiled((REPOSITORY / "params.yaml").read_bytes()[:1500]), st.binary(max_size=64)))
@example(content=b"a: &a [x]\nb: &b [*a, *a]\n")
@example(content=b"!!python/object/apply:os.system ['true']\n")
@example(content=b"a: !!python/name:os.system\n")
@example(content=b"seed: 2001-99-99\n")
@example(content=b"? [1, 2]\n: 3\n")
@example(content=b"<<: 3\n")
def test_params(folder: Path, content: bytes) -> None:
    (path := folder / "params.yaml").write_bytes(content)
    _only_user_errors(lambda: read(path))


def test_yaml_that_asks_for_code_gets_none(folder: Path) -> None:
    (path := folder / "params.yaml").write_text(f"seed: !!python/object/apply:os.mkdir ['{folder}/made']\n")
    with pytest.raises(UserError):
        read(path)
    assert not (folder / "made").exists()


def test_yaml_that_refers_to_itself_takes_no_memory(folder: Path) -> None:
    """A billion laughs: nine levels of ten references each."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9)]
    (path := folder / "params.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError) as raised:
        read(path)
    assert len(str(raised.value)) < 20_000


CSV = (",".join(COLUMNS) + '\n0042,images/a.png,8,8,abc\n"b, c",images/b.png,8,8,def\n').encode()
JSON = json.dumps({"classes": ["sky", "cow"], "ignored": 255}).encode()


@settings(max_examples=60)
@given(content=st.one_of(spoiled(CSV, JSON), st.binary(max_size=64)))
def test_tables_and_json(folder: Path, content: bytes) -> None:
    (folder / "truth").mkdir(exist_ok=True)
    (folder / "train").mkdir(exist_ok=True)
    np.save(folder / "train/images.npy", np.zeros((2, 4, 4, 3), np.uint8))
    np.save(folder / "truth/val.npy", np.zeros((2, 4, 4), np.uint8))
    for name in ("train/index.csv", "truth/classes.json"):
        (folder / name).write_bytes(content)
    _only_user_errors(lambda: read_csv(folder / "train/index.csv"))
    _only_user_errors(lambda: read_index(folder / "train"))
    _only_user_errors(lambda: open_images(folder / "train"))
    _only_user_errors(lambda: read_json(folder / "train/index.csv"))
    _only_user_errors(lambda: read_truth(folder / "truth"))
