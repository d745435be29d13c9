"""Tiny data sets and params files for tests, made on the spot."""

import copy
import functools
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from ruamel.yaml import YAML

from stages.dataset.raw_files import raw_files
from stages.dataset.source import DataSet, hash_files, list_data
from stages.settings.schema import Params
from stages.settings.schema_prepare import Prepare
from stages.tools.composing import compose, lay_base, plain
from stages.tools.table_file import read_base

REPOSITORY = Path(__file__).parents[1]
TAXONOMIES = {path.stem: path for path in (REPOSITORY / "stages/readers").glob("*/*.csv")}
CLASS_NAMES = ("sky", "grass", "cow")
LIST = "Coco164kFull_Stuff_Coarse_7"


def write_params(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """The committed params.yaml with other values under dotted keys: {"prepare.reader": "folder"}."""
    params = copy.deepcopy(committed_params())
    for key, value in (changes or {}).items():
        *sections, name = key.split(".")
        section = params
        for part in sections:
            section = section[part]
        assert name in section, f"{key} is not in params.yaml"
        section[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_yaml(params), encoding="utf-8")
    return path


class _Quoting(yaml.SafeDumper):
    """Quotes all text: YAML 1.2, which stages read, takes more of it for numbers than PyYAML does."""


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"')
)


def as_yaml(content: Mapping[str, Any]) -> str:
    """Nested settings as YAML, without the comments that ruamel takes long to keep."""
    text: str = yaml.dump(content, Dumper=_Quoting, sort_keys=False)
    return text


@functools.cache
def committed_params() -> dict[str, Any]:
    """params.yaml, which is not to be changed."""
    content: dict[str, Any] = YAML(typ="safe", pure=True).load(
        (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    )
    return content


@functools.cache
def read_preset(name: str, base: str | None = None) -> Params:
    """All that a preset says, with the values of a base over it."""
    params = compose(name, REPOSITORY / "presets")
    if base is not None:
        lay_base(params, base, REPOSITORY / "presets")
    return Params.model_validate(plain(params))


def picie() -> dict[str, Any]:
    """PiCIE's base without any part of the paper, as keywords of a test: `params(**picie())`."""
    changes = {**_picie(), "train.context.similarity": "none", "train.image_loss.weight": 0.0}
    return {key.replace(".", "__"): value for key, value in changes.items()}


@functools.cache
def _picie() -> dict[str, Any]:
    return read_base(REPOSITORY / "presets" / "bases" / "picie.yaml")


def prepare_settings(**changes: Any) -> Prepare:
    """`prepare` of the committed params.yaml: `prepare_settings(reader="folder", split__by="lists")`."""
    section = copy.deepcopy(committed_params()["prepare"])
    for key, value in changes.items():
        *parts, name = key.split("__")
        inner = section
        for part in parts:
            inner = inner[part]
        inner[name] = value
    return Prepare.model_validate(section)


def write_image(path: Path, pixels: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    """Write pixels as an image in the format of the suffix, converted to `mode` first."""
    image = Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def scene(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose classes are plain to see: RGB [height, width, 3], ids [height, width], some ignored."""
    labels = np.zeros((height, width), np.uint8)
    horizon, left = int(rng.integers(height // 4, height // 2)), int(rng.integers(0, width // 2))
    labels[horizon:] = 1
    labels[horizon + 2 : horizon + 2 + height // 4, left : left + width // 4] = 2
    colors = np.array([[120, 170, 230], [70, 140, 60], [150, 90, 50]]) + rng.integers(-20, 20, (3, 3))
    pixels = np.clip(colors[labels] + rng.integers(-15, 15, (height, width, 3)), 0, 255).astype(np.uint8)
    labels[0] = 255
    return pixels, labels


def make_folder(
    root: Path,
    *,
    num_train: int = 6,
    num_val: int = 4,
    sizes: Sequence[tuple[int, int]] = ((48, 36), (30, 50), (40, 40)),
    labels: bool = True,
) -> Path:
    """A folder data set of PNG images in turns of `sizes` (width, height), with or without labels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_val)):
        for index in range(count):
            pixels, ids = scene(rng, *sizes[index % len(sizes)])
            write_image(root / "images" / split / "part" / f"{index:03d}.png", pixels)
            if labels and split == "val":
                write_image(root / "labels" / split / "part" / f"{index:03d}.png", ids)
    if labels:
        (root / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n", encoding="utf-8")
    return root


def manifest_sha256(data: DataSet) -> str:
    """The hash that `make preset` pins."""
    return hash_files(raw_files(data))


def folder_manifest(root: Path) -> str:
    """The hash of a folder data set with images/train and images/val."""
    return manifest_sha256(list_data(prepare_settings(reader="folder", path=str(root))))


def noise(seed: int, width: int, height: int) -> np.ndarray:
    """An RGB image of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png16(values: np.ndarray) -> bytes:
    """A PNG with 16 bits per channel, as cameras write it; Pillow reads these and does not write them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]  # gray, gray with alpha, RGB, RGBA
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_coco(
    root: Path,
    images: str = "images/{}",
    labels: str = "stuffthingmaps/{}",
    *,
    listed: bool = True,
    num_train: int = 4,
) -> Path:
    """COCO-Stuff as it is downloaded; the lists leave out an image of each split, three are to score."""
    known = np.array([0, 2, 14, 91, 156, 181, 255], np.uint8)
    for split, count in (("train2017", num_train), ("val2017", 3)):
        for number in range(count):
            name = f"{number:012d}"
            write_image(root / images.format(split) / f"{name}.jpg", noise(number, 50, 40))
            if split == "val2017":
                ids = np.random.default_rng(number).choice(known, (40, 50))
                write_image(root / labels.format(split) / f"{name}.png", ids)
        if listed:
            path = root / "curated" / split / f"{LIST}.txt"
            path.parent.mkdir(parents=True)
            path.write_text("".join(f"{number:012d}\n" for number in range(count - 1)))
    return root
