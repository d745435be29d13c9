"""What real people's folders hold: what is read, left out, warned of and refused, through `prepare`."""

import gc
import os
import unicodedata
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import prepare
from stages.core.artefacts import read_metrics
from stages.core.images import open_images, read_index
from stages.dataset import decode
from stages.dataset.label_maps import decode_labels
from stages.dataset.left_out import (
    BROKEN_LINK,
    ELSEWHERE,
    HEIC,
    HIDDEN,
    LOOP,
    MASK,
    NO_FILE,
    NO_PICTURE,
    OTHER_FORMAT,
    VIDEO,
)
from stages.dataset.sixteen_bits import LARGEST
from stages.dataset.source import Remark, list_data
from stages.dataset.survey import bits_in_use
from stages.dataset.taxonomy import plain
from stages.dataset.truth import IGNORED, read_truth
from stages.settings.errors import UserError
from tests.datasets import folder_manifest, noise, png16, prepare_settings, write_image, write_params

SIDE = 16
FITTING: dict[str, Any] = {
    "size_px": SIDE,
    "prepare.train_px": SIDE,
    "prepare.reader": "folder",
    "runtime.num_workers": 1,
    "pretrain.batch_size": 2,
    "pretrain.queue_size": 2,
    "train.batch_size": 2,
    "global_k": 2,
}


class Prepared:
    """What `prepare` made of a folder."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.summary = read_metrics(out / "prepare.json")["prepare"]

    @property
    def left_out(self) -> dict[str, int]:
        return {reason: names["files"] for reason, names in self.summary["left_out"].items()}

    @property
    def listed(self) -> list[tuple[str, str]]:
        """Rows of the table of all that is left out."""
        table = pd.read_csv(self._out / "left_out.csv")
        assert list(table) == ["file", "reason"]
        return list(table.itertuples(index=False, name=None))

    def ids(self, split: str) -> list[str]:
        return list(read_index(self._out / "images" / split)["id"])

    def images(self, split: str) -> np.ndarray:
        return np.asarray(open_images(self._out / "images" / split))

    def labels(self) -> np.ndarray:
        return np.asarray(read_truth(self._out / "truth").maps)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four training and two validation images."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    root = tmp_path / "photos"
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            pixels = noise(number + 10 * (split == "val"), SIDE, SIDE)
            write_image(root / f"images/{split}/{number}.png", pixels)
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Callable[..., Prepared]:
    def run_(**changes: Any) -> Prepared:
        out = tmp_path / "out"
        settings = {**FITTING, "prepare.path": str(root)}
        settings |= {key.replace("__", "."): value for key, value in changes.items()}
        write_params(out / "params.yaml", settings)
        flags = {"train-images": "images/train", "val-images": "images/val", "truth": "truth"}
        flags |= {"left-out": "left_out.csv", "metrics": "prepare.json", "params": "params.yaml"}
        prepare.main([text for name, path in flags.items() for text in (f"--{name}", str(out / path))])
        return Prepared(out)

    return run_


@pytest.fixture
def fault(run: Callable[..., Prepared]) -> Callable[..., str]:
    def fault_(**changes: Any) -> str:
        with pytest.raises(UserError) as raised:
            run(**changes)
        message = str(raised.value)
        del raised
        gc.collect()  # the lock of a run goes with its last reference
        return message

    return fault_


def label(root: Path, *maps: np.ndarray, classes: str = "sky\ngrass\n", **options: Any) -> None:
    """Label maps of the validation images."""
    for number, ids in enumerate(maps):
        write_image(root / f"labels/val/{number}.png", ids, **options)
    (root / "classes.txt").write_text(classes, encoding="utf-8")


def half(left: int, right: int) -> np.ndarray:
    return np.repeat(np.repeat(np.array([[left, right]], np.uint8), SIDE, 0), SIDE // 2, 1)


# What is no picture of the user's


def _write(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _picture(path: Path) -> None:
    write_image(path, noise(99, SIDE, SIDE))


# Case: the reason, and pictures below the folder, by name.
LEFT_OUT: dict[str, tuple[str, list[str]]] = {
    "thumbnails of a network drive": (HIDDEN, ["images/train/@eaDir/0.png/thumb.jpg"]),
    "an archive of a Mac": (HIDDEN, ["images/train/__MACOSX/0.png"]),
    "thumbnails of a desktop": (HIDDEN, ["images/.thumbnails/0.png"]),
    "a disk of a Mac": (HIDDEN, ["images/train/._0.png"]),
    "a mask beside its image": (MASK, ["images/train/0_mask.png"]),
    "numbered masks": (MASK, [f"images/train/0_mask{end}.png" for end in ("", "_1", "2")]),
    "masks in other spellings": (
        MASK,
        [f"images/train/{name}.png" for name in ("0_Mask", "mask_1", "2.png_mask")],
    ),
    "a folder of masks": (MASK, ["images/train/masks/0.png"]),
    "folders in a folder of masks": (MASK, ["images/train/masks/part/0.png", "images/train/masks/7.png"]),
    "masks in a folder, named as such": (
        MASK,
        [f"images/train/masks/{name}.png" for name in ("0_mask", "1.png", "2.png_gt")],
    ),
    "pictures of a phone": (HEIC, ["images/train/a.HEIC", "images/train/b.heif"]),
    "a live photograph and a clip": (VIDEO, ["images/train/0.MOV", "images/train/clip.mkv"]),
    "a grey map": (OTHER_FORMAT, ["images/val/a.pgm"]),
    "notes": (NO_PICTURE, ["images/val/notes.txt"]),
    "images beside the splits": (ELSEWHERE, ["images/a.png"]),
    "a third split": (ELSEWHERE, [f"images/test/{number}.png" for number in range(3)]),
    "images of another folder": (ELSEWHERE, ["more/a.jpg"]),
    "a link to nothing": (BROKEN_LINK, ["images/train/gone.png"]),
    "a pipe": (NO_FILE, ["images/train/pipe.png"]),
    "a link upwards": (LOOP, ["images/train/up"]),
}
MAKE: dict[str, Callable[[Path], object]] = {
    BROKEN_LINK: lambda path: path.symlink_to("nowhere.png"),
    NO_FILE: os.mkfifo,
    LOOP: lambda path: path.symlink_to(path.parents[1]),
    HEIC: lambda path: path.write_bytes(b"x"),
    VIDEO: lambda path: path.write_bytes(b"x"),
    OTHER_FORMAT: lambda path: path.write_bytes(b"x"),
    NO_PICTURE: lambda path: path.write_bytes(b"x"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_left_out_has_a_name_and_a_number(
    root: Path, run: Callable[..., Prepared], case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reason, names = LEFT_OUT[case]
    for name in names:
        MAKE.get(reason, _picture)(root / name)
    found = run()
    assert found.left_out == {reason: len(names)}
    assert len(found.ids("train")) == 4
    assert len(found.ids("val")) == 2
    assert f"prepare: left out {len(names)}: {reason} (" in capsys.readouterr().out


def test_a_word_at_the_end_of_a_name_is_no_mask_without_its_image(
    root: Path, run: Callable[..., Prepared]
) -> None:
    write_image(root / "images/train/carnival_mask.png", noise(5, SIDE, SIDE))
    assert "carnival_mask" in run().ids("train")


def test_many_pictures_that_are_left_out_are_a_warning(root: Path, run: Callable[..., Prepared]) -> None:
    for number in range(3):
        _write(root / f"images/train/{number}.gif")
    (warning,) = run().summary["warnings"]
    assert warning == (
        "3 of 9 files that may be pictures are left out (3: picture of a format that is not read; convert it "
        "to PNG or JPEG)"
    )


def test_all_names_are_in_a_table_and_three_in_messages(
    root: Path, run: Callable[..., Prepared], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run().listed == []
    for number in range(5):
        _write(root / f"images/train/a, {number}.gif")
    _write(root / "images/val/notes.txt")
    found = run()
    pictures = [f"images/train/a, {number}.gif" for number in range(5)]
    assert found.listed == [("images/val/notes.txt", NO_PICTURE), *((one, OTHER_FORMAT) for one in pictures)]
    assert found.summary["left_out"][OTHER_FORMAT] == {"files": 5, "examples": pictures[:3]}
    said = capsys.readouterr().out
    assert "left_out.csv names all of them\n" in said
    assert pictures[3] not in said


def test_outputs_of_segment_are_no_images(root: Path, run: Callable[..., Prepared]) -> None:
    folder = root / "images/train/segmented"
    _picture(folder / "a.png")
    _picture(folder / "own.png")
    (folder / "segment.json").write_text('{"written_by": "fs4 segment", "files": {"a.png": 1}}')
    found = run()
    assert found.left_out == {"written by segment": 2}
    assert found.ids("train")[-1] == "segmented/own"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(root: Path, run: Callable[..., Prepared]) -> None:
    folder = root / "images/train/private"
    folder.mkdir()
    folder.chmod(0)
    try:
        assert run().left_out == {"folder that this user may not read": 1}
    finally:
        folder.chmod(0o755)


def test_a_listing_that_fails_is_named(
    root: Path, run: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir
    (root / "images/train/private").mkdir()

    def refuse(path: Any) -> Any:
        if not isinstance(path, int) and Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = run()
    assert found.left_out == {"folder that this user may not read": 1}
    assert found.summary["left_out"]["folder that this user may not read"]["examples"] == [
        "images/train/private"
    ]


def test_a_data_root_that_may_not_be_read_is_no_traceback(
    root: Path, fault: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as inner:
        inner.setattr(Path, "is_dir", refuse)
        with pytest.raises(UserError) as raised:
            list_data(prepare_settings(reader="folder", path=str(root)))
    assert str(raised.value) == f"{root}: cannot be read (Permission denied); allow this user to read it"


def test_links_from_the_splits_to_a_pool_of_images(root: Path, run: Callable[..., Prepared]) -> None:
    """The pool sorts before images/, and is no other set of images."""
    (root / "JPEGImages").mkdir()
    (root / "images/train").rename(root / "JPEGImages/train")
    (root / "images/train").symlink_to(root / "JPEGImages/train")
    found = run()
    assert len(found.ids("train")) == 4
    assert found.left_out == {}


# A range is looked at


def _tiff16(values: np.ndarray, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(buffer, "TIFF", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("largest", "bits"), [(255, 8), (1023, 10), (4095, 12), (16383, 14), (65535, 16)])
def test_sixteen_bits_are_scaled_by_what_the_set_uses(
    root: Path, run: Callable[..., Prepared], largest: int, bits: int
) -> None:
    bright = np.linspace(0, largest, SIDE * SIDE).reshape(SIDE, SIDE)
    _write(root / "images/train/bright.tif", _tiff16(bright))
    _write(root / "images/train/dark.tif", _tiff16(bright / 4))
    found = run()
    images = dict(zip(found.ids("train"), found.images("train").astype(float), strict=True))
    expected = np.repeat((bright * 255 / largest)[..., None], 3, 2)
    assert np.abs(images["bright"] - expected).max() <= 1.5
    assert np.abs(images["dark"] - expected / 4).max() <= 1.5, "brightness no longer compares"
    assert found.summary["bits_per_channel"] == bits
    assert found.summary["notes"] == [
        f"images with 16 bits per channel use {bits} of them: 0 to {2**bits - 1:,} becomes 0 to 255"
    ]


def test_colors_of_twelve_bits_in_sixteen(root: Path, run: Callable[..., Prepared]) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (SIDE, SIDE, 3))
    values[0, 0] = 4095
    _write(root / "images/train/deep.png", png16(values))
    found = run()
    image = found.images("train")[found.ids("train").index("deep")]
    np.testing.assert_array_equal(image, values >> 4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_twelve_bits_of_sixteen_with_alpha_and_without(tmp_path: Path, channels: int) -> None:
    """Alpha has all bits; its 65,535 does not make those of the colors sixteen."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 12, (6, 5, channels)).astype(np.uint16)
    values[0, 0] = (1 << 12) - 1
    if channels in (2, 4):
        values[..., -1] = LARGEST
    (tmp_path / "deep.png").write_bytes(png16(values))
    assert bits_in_use(tmp_path, ["deep.png"]) == 12
    found, remarks = decode.decode_image(png16(values), bits=12)
    colours = values[..., :1].repeat(3, 2) if channels < 3 else values[..., :3]
    np.testing.assert_array_equal(np.asarray(found), colours >> 4)
    assert remarks == Remark.DEEP


def test_half_transparent_gray_of_twelve_bits_lies_over_white() -> None:
    values = np.full((4, 4, 2), 1 << 11, np.uint16)
    values[..., 1] = 0x8000
    found, remarks = decode.decode_image(png16(values), bits=12)
    assert remarks == Remark.TRANSPARENT | Remark.DEEP
    assert abs(int(np.asarray(found)[0, 0, 0]) - (128 * 128 + 255 * 127) // 255) <= 1


def test_a_turned_tiff_of_twelve_bits_is_known_as_turned() -> None:
    """It is turned as it is loaded, and does not say so any more."""
    found, remarks = decode.decode_image(_tiff16(np.full((3, 4), 4000), tiffinfo={274: 6}), bits=12)
    assert found.size == (3, 4)
    assert remarks == Remark.DEEP | Remark.TURNED


@pytest.mark.parametrize("channels", [3, 4])
def test_a_label_map_with_colors_of_sixteen_bits_is_refused(channels: int) -> None:
    """Pillow keeps the high bytes, which are 0 for all class ids."""
    ids = np.repeat(np.array([[0, 1], [2, 255]], np.uint16)[..., None], channels, 2)
    with pytest.raises(UserError, match=r"^has colors of 16 bits per channel, of which 8 are lost; "):
        decode_labels(png16(ids), plain(("a", "b", "c")))


def test_white_is_zero_in_sixteen_bits() -> None:
    values = np.array([[0, 4095]])
    content = _tiff16(values, tiffinfo={262: 0})
    assert Image.open(BytesIO(content)).tag_v2[262] == 0
    image, _ = decode.decode_image(content, bits=12)
    assert np.asarray(image)[0, :, 0].tolist() == [255, 0]


def test_values_beyond_sixteen_bits_are_refused(root: Path, fault: Callable[..., str]) -> None:
    values = np.linspace(0, 2_000_000, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.int32)
    Image.fromarray(values).save(root / "images/train/float.tif")
    assert fault() == (
        "images/train/float.tif: has values from 0 to 2,000,000, beyond 0 to 65,535; save it with 8 or 16 "
        "bits per channel"
    )


def test_what_lies_under_transparent_pixels_is_not_learned_from(
    root: Path, run: Callable[..., Prepared]
) -> None:
    pixels = np.full((SIDE, SIDE, 4), 7, np.uint8)
    pixels[:, : SIDE // 2, 3] = 0
    pixels[:, SIDE // 2 :, 3] = 255
    Image.fromarray(pixels).save(root / "images/train/cut.png")
    found = run()
    image = found.images("train")[found.ids("train").index("cut")]
    assert image[:, : SIDE // 2].min() == 255
    assert image[:, SIDE // 2 :].max() == 7
    assert found.summary["warnings"] == [
        "files with transparent pixels, which are laid over white: 1 (images/train/cut.png)"
    ]


@pytest.mark.parametrize(("form", "difference"), [("TIFF", 0), ("WEBP", 0), ("PNG", 0), ("AVIF", 4)])
def test_several_pages_or_frames_are_said(form: str, difference: int) -> None:
    pages = [Image.fromarray(noise(number, 8, 8)) for number in range(3)]
    buffer = BytesIO()
    options: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    pages[0].save(buffer, form, save_all=True, append_images=pages[1:], **options.get(form, {}))
    image, remarks = decode.decode_image(buffer.getvalue())
    assert remarks == Remark.PAGES
    assert np.abs(np.asarray(image).astype(int) - np.asarray(pages[0])).max() <= difference


@pytest.mark.parametrize(
    ("width", "protocol", "percent", "is_warning"),
    [(24, "own", 33, False), (48, "own", 67, True), (48, "picie", 67, False)],
)
def test_what_is_cut_off_is_said(
    root: Path,
    run: Callable[..., Prepared],
    capsys: pytest.CaptureFixture[str],
    width: int,
    protocol: str,
    percent: int,
    is_warning: bool,
) -> None:
    assert not [one for one in run().summary["notes"] if "central square" in one]
    capsys.readouterr()
    for number, path in enumerate(sorted((root / "images").rglob("*.png"))):
        write_image(path, noise(number, *((width, SIDE) if number % 2 else (SIDE, width))))
    summary = run(prepare__protocol=protocol).summary
    said = f"images are cut to their central square: on average {percent}% of an image is not used"
    (found,) = summary["warnings" if is_warning else "notes"]
    assert found == said + "; if their ends matter, split them into squares" * is_warning
    assert summary["notes" if is_warning else "warnings"] == []
    shown = capsys.readouterr()
    assert said in (shown.err if is_warning else shown.out)


def test_images_of_one_color_are_named(root: Path, run: Callable[..., Prepared]) -> None:
    write_image(root / "images/train/black.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    assert run().summary["warnings"] == [
        "files of a single color, from which nothing can be learned: 1 (images/train/black.png)"
    ]


def test_nothing_but_images_of_one_color_is_refused(root: Path, fault: Callable[..., str]) -> None:
    for number in range(4):
        write_image(root / f"images/train/{number}.png", np.full((SIDE, SIDE, 3), number, np.uint8))
    assert fault() == f"{root}: every training image has a single color; there is nothing to learn"


def test_copies_are_named(root: Path, run: Callable[..., Prepared]) -> None:
    content = (root / "images/train/0.png").read_bytes()
    _write(root / "images/train/again.png", content)
    _write(root / "images/val/9.png", content)
    assert run().summary["warnings"] == [
        "training images that are copies of another: 1 (images/train/again.png = images/train/0.png); remove "
        "the first of each pair, or it counts twice",
        "validation images that are copies of a training image: 1 (images/val/9.png = images/train/0.png); "
        "remove one of each pair",
    ]


# Label maps are not believed


def test_a_palette_of_gray_levels_in_another_order(root: Path, run: Callable[..., Prepared]) -> None:
    ids = half(0, 1)
    for number in range(2):
        image = Image.fromarray((1 - ids).astype(np.uint8), "P")
        image.putpalette([1, 1, 1, 0, 0, 0])  # index 0 is gray level 1
        path = root / f"labels/val/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (root / "classes.txt").write_text("sky\ngrass\n")
    found = run()
    np.testing.assert_array_equal(found.labels()[0], ids)
    (warning,) = found.summary["warnings"]
    assert warning.startswith("palette images whose colors are gray levels, so that these are the class ids")


@pytest.mark.parametrize(
    "palette", [[0, 0, 0, 255, 255, 255], [0, 0, 0, 127, 127, 127], [0, 0, 0, 128, 0, 0]]
)
def test_a_palette_for_the_eye_keeps_its_indices(
    root: Path, run: Callable[..., Prepared], palette: list[int]
) -> None:
    for number in range(2):
        image = Image.fromarray(half(0, 1), "P")
        image.putpalette(palette)
        path = root / f"labels/val/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (root / "classes.txt").write_text("sky\ngrass\n")
    found = run()
    np.testing.assert_array_equal(found.labels()[0], half(0, 1))
    assert found.summary["warnings"] == []


def test_an_object_of_255_is_a_warning_with_its_remedy(root: Path, run: Callable[..., Prepared]) -> None:
    label(root, half(0, 255), half(0, 255))
    (warning,) = run().summary["warnings"]
    assert warning == (
        "the value 255 covers 50% of the labeled images and is ignored, and no pixel has the class grass; if "
        "255 means it, add labels.csv: the header value,class and a line for each value, such as 255,grass"
    )
    (root / "labels.csv").write_text("value,class\n0,sky\n255,grass\n")
    found = run()
    np.testing.assert_array_equal(found.labels()[0], half(0, 1))
    assert found.summary["warnings"] == []


def test_a_class_without_a_pixel_is_a_warning(root: Path, run: Callable[..., Prepared]) -> None:
    label(root, half(0, 2), half(0, 2), classes="sky\ngrass\ncow\n")
    (warning,) = run().summary["warnings"]
    assert warning.startswith(
        "no pixel has the class grass (1 of 3 classes); check that the lines of classes"
    )


def test_much_that_is_ignored_is_a_warning(root: Path, run: Callable[..., Prepared]) -> None:
    mostly = np.full((SIDE, SIDE), IGNORED, np.uint8)
    mostly[0] = half(0, 1)[0]
    label(root, mostly, mostly)
    (warning,) = run().summary["warnings"]
    assert warning.startswith("94% of the pixels have the value 255 and are ignored; if it is a class, add")


def test_the_class_file_of_labelme(root: Path, run: Callable[..., Prepared]) -> None:
    label(root, half(0, 1), half(0, 255), classes="__ignore__\n_background_\ncat\n")
    found = run()
    assert found.summary["class_shares"] == {
        "_background_": pytest.approx(2 / 3),
        "cat": pytest.approx(1 / 3),
    }
    (note,) = found.summary["notes"]
    assert note.startswith(
        "classes.txt: line 1 is __ignore__, labelme's name of what has no class; class id 0"
    )


def test_colors_get_a_mapping(root: Path, run: Callable[..., Prepared], fault: Callable[..., str]) -> None:
    red, black = (200, 0, 0), (0, 0, 0)
    colors = np.array([black, red], np.uint8)[half(0, 1)]
    label(root, colors, colors)
    message = fault()
    assert "labels/val/0.png: has colors in place of class ids (#c80000, #000000); add labels.csv" in message
    (root / "labels.csv").write_text("value,class\n#c80000,grass\n#000000,\n")
    found = run()
    np.testing.assert_array_equal(found.labels()[0], half(IGNORED, 1))
    (root / "labels.csv").write_text("value,class\n#c80000,grass\n")
    assert "labels/val/0.png: has the color #000000, which labels.csv does not list; add a line" in fault()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must begin with the line value,class"),
        (
            "value;class\n0;sky\n",
            "must begin with the line value,class, found 'value;class'; save it with commas",
        ),
        ("0,sky\n", "must begin with the line value,class, found '0,sky'"),
        ("value,class\n0,tree\n", "line 2: 'tree' is not in classes.txt"),
        (
            "value,class\nred,sky\n",
            "line 2: the value 'red' is neither a number 0 to 255 nor a color #rrggbb",
        ),
        (
            "value,class\n256,sky\n",
            "line 2: the value '256' is neither a number 0 to 255 nor a color #rrggbb",
        ),
    ],
)
def test_a_mapping_that_cannot_be(root: Path, fault: Callable[..., str], text: str, rule: str) -> None:
    label(root, half(0, 1), half(0, 1))
    (root / "labels.csv").write_text(text)
    assert fault() == f"{root}/labels.csv: {rule}"


def test_label_maps_without_an_image_are_named(root: Path, run: Callable[..., Prepared]) -> None:
    label(root, half(0, 1), half(0, 1), half(0, 1))
    write_image(root / "labels/train/0.png", half(0, 1))
    assert run().left_out == {
        "label map of no validation image": 1,
        "label map of a training image, never read": 1,
    }


def test_label_maps_that_lie_flat_are_not_used_and_a_warning_says_where_they_belong(
    root: Path, run: Callable[..., Prepared]
) -> None:
    """With a photograph of each name in both splits, they could be of either."""
    sides = [{path.stem for path in (root / "images" / split).iterdir()} for split in ("train", "val")]
    label(root, *(half(0, 1) for _ in sides[1]))
    for path in sorted((root / "labels/val").iterdir()):
        path.rename(root / "labels" / path.name)
    (root / "labels/val").rmdir()
    prepared = run()
    assert prepared.left_out == {
        "label map called like a validation image, but not in labels/val": len(sides[1])
    }
    assert (
        "classes.txt is there, but no label map is used: they belong in labels/val"
        in (prepared.summary["warnings"])
    )
    assert sides[0] >= sides[1]


# Names


def test_spaces_as_a_mac_writes_them(root: Path, run: Callable[..., Prepared]) -> None:
    write_image(root / "images/train/Screenshot 9.41.00\u202fAM.png", noise(7, SIDE, SIDE))
    assert "Screenshot 9.41.00\u202fAM" in run().ids("train")


def test_labels_match_in_any_normal_form_and_suffix_case(root: Path, run: Callable[..., Prepared]) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Mädchen") for form in ("NFC", "NFD"))
    for number in range(2):
        (root / f"images/val/{number}.png").unlink()
    for index, (image, map_) in enumerate(((composed, decomposed), (f"{decomposed}2", f"{composed}2"))):
        write_image(root / f"images/val/{image}.png", noise(index + 50, SIDE, SIDE))
        path = root / f"labels/val/{map_}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(half(0, 1)).save(path, "PNG")
    (root / "classes.txt").write_text("sky\ngrass\n")
    np.testing.assert_array_equal(run().labels(), np.stack([half(0, 1)] * 2))


LINES = {
    "backslashes": "train\\{}.png",
    "images before the name": "images/train/{}.png",
    "a whole path": "/home/me/photos/images/train/{}.png",
    "quotes": '"train/{}.png"',
    "a dot": "./train/{}",
    "ids": "train/{}",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_lists_as_other_programs_write_them(
    root: Path, run: Callable[..., Prepared], line: str, mark: str
) -> None:
    (root / "train.txt").write_text(
        mark + "".join(line.format(n) + "\r\n" for n in range(3)), encoding="utf-8"
    )
    (root / "val.txt").write_text("val/0\nval/1\n")
    found = run(prepare__split__by="lists")
    assert found.ids("train") == ["train/0", "train/1", "train/2"]
    assert found.left_out == {"in neither list": 1}


def test_a_line_without_an_image_gets_the_nearest_names(root: Path, fault: Callable[..., str]) -> None:
    (root / "train.txt").write_text("train/0.JPG\ntrain/1\n")
    (root / "val.txt").write_text("val/0\n")
    message = fault(prepare__split__by="lists")
    assert (
        "train.txt: 1 of 2 lines match no image below images/ (train/0.JPG); the nearest are train/0.png "
        "(another suffix) and "
    ) in message


# One damaged file


def test_a_damaged_file_is_left_out_and_named(root: Path, run: Callable[..., Prepared]) -> None:
    for number in range(4, 40):
        write_image(root / f"images/train/{number:02d}.png", noise(number, SIDE, SIDE))
    _write(root / "images/train/05.png", b"")
    found = run()
    assert found.left_out == {"damaged": 1}
    assert found.summary["left_out"]["damaged"]["examples"] == [
        "images/train/05.png: is empty; replace or remove it"
    ]
    assert found.listed == [("images/train/05.png", "damaged: is empty; replace or remove it")]
    assert found.summary["train_images"] == len(found.ids("train")) == len(found.images("train")) == 39
    assert "05" not in found.ids("train")
    image = np.asarray(Image.open(root / "images/train/06.png"))
    np.testing.assert_array_equal(found.images("train")[found.ids("train").index("06")], image)


def test_a_damaged_file_fits_the_pin_of_the_data(root: Path, run: Callable[..., Prepared]) -> None:
    """`make preset` pins the hash of all files, damaged ones too."""
    for number in range(4, 40):
        write_image(root / f"images/train/{number:02d}.png", noise(number, SIDE, SIDE))
    _write(root / "images/train/05.png", b"not a picture")
    pinned = folder_manifest(root)
    found = run(prepare__manifest_sha256=pinned)
    assert found.summary["manifest_sha256"] == pinned
    assert found.left_out == {"damaged": 1}


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_is_too_narrow_is_left_out_and_named(
    root: Path, run: Callable[..., Prepared], split: str
) -> None:
    """It is in the manifest all the same, as every damaged file."""
    for number in range(4, 40):
        write_image(root / f"images/train/{number:02d}.png", noise(number, SIDE, SIDE))
    label(root, half(0, 1), half(0, 1))
    write_image(root / f"images/{split}/banner.png", noise(3, 400_000, 1))
    if split == "val":
        write_image(root / "labels/val/banner.png", np.zeros((1, 400_000), np.uint8))
    pinned = folder_manifest(root)
    found = run(prepare__manifest_sha256=pinned)
    assert found.summary["left_out"] == {
        "damaged": {
            "files": 1,
            "examples": [
                f"images/{split}/banner.png: is 400000 x 1 px, too narrow to bring its shorter side to 16 "
                "px; crop or remove it"
            ],
        }
    }
    assert "banner" not in found.ids(split)
    assert (len(found.images("train")), len(found.images("val")), len(found.labels())) == (40, 2, 2)


def test_label_maps_of_damaged_images_are_not_counted(root: Path, run: Callable[..., Prepared]) -> None:
    label(root, half(1, 1), half(1, 1))
    _write(root / "images/val/1.png", b"")
    found = run(prepare__most_damaged=0.5)
    assert found.summary["class_shares"] == {"sky": 0.0, "grass": 1.0}
    assert len(found.labels()) == 1
    _write(root / "images/val/1.png", (root / "images/val/0.png").read_bytes())
    _write(root / "labels/val/1.png", b"")
    assert run(prepare__most_damaged=0.5).listed == [
        ("labels/val/1.png", "damaged: is empty; replace or remove it")
    ]


def test_a_mapping_that_is_added_after_a_refusal_is_used(
    root: Path, run: Callable[..., Prepared], fault: Callable[..., str]
) -> None:
    """The state of the refused run holds label maps that were read without it."""
    label(root, half(0, 255), half(0, 128))
    assert "has class id 128" in fault()
    (root / "labels.csv").write_text("value,class\n0,sky\n255,grass\n128,sky\n")
    np.testing.assert_array_equal(run().labels()[0], half(0, 1))


def test_too_many_damaged_files_are_refused(root: Path, fault: Callable[..., str]) -> None:
    _write(root / "images/train/0.png", b"")
    said, empty = fault().split("\n")
    assert said.startswith(
        f"{root}: 1 of 6 images are damaged, more than prepare.most_damaged: 0.05; repair or remove them, or "
        "raise it; "
    )
    assert empty == "images/train/0.png: is empty; replace or remove it"
    for number in range(4):
        _write(root / f"images/train/{number}.png", b"")
    assert fault(prepare__most_damaged=1.0) == (
        f"{root}: all training images are damaged; repair or replace them"
    )
