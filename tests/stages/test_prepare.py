"""prepare through its command line: what it writes, and every message for data that it cannot take."""

import gc
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import prepare
from stages.core.artefacts import read_metrics
from stages.core.images import open_images, read_index
from stages.dataset import packed_splits, source
from stages.dataset.raw_files import raw_files, write_listing
from stages.dataset.source import DataSet, Decode, Decoded, Item, list_data
from stages.dataset.survey import decoding, survey
from stages.dataset.truth import IGNORED, read_truth, write_classes
from stages.settings.errors import UserError
from tests.datasets import (
    CLASS_NAMES,
    REPOSITORY,
    folder_manifest,
    make_folder,
    manifest_sha256,
    noise,
    prepare_settings,
    write_image,
    write_params,
)

SIZE_PX, TRAIN_PX = 32, 40
# What six images are enough for.
FITTING: dict[str, Any] = {
    "pretrain.batch_size": 2,
    "pretrain.queue_size": 2,
    "train.batch_size": 2,
    "global_k": 2,
}


@pytest.fixture(autouse=True)
def _state_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good folder data set, to be spoiled."""
    return make_folder(tmp_path / "set")


def run(root: Path | None, out: Path, **changes: Any) -> Path:
    """Run prepare on a folder (None: on the demo) into `out`, which is returned."""
    settings = {"size_px": SIZE_PX, "prepare.train_px": TRAIN_PX, "runtime.num_workers": 1, **FITTING}
    if root is not None:
        settings |= {"prepare.reader": "folder", "prepare.path": str(root)}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    params = write_params(out / "params.yaml", settings)
    flags = {
        "train-images": out / "images/train",
        "val-images": out / "images/val",
        "truth": out / "truth",
        "left-out": out / "left_out.csv",
        "metrics": out / "prepare.json",
        "params": params,
    }
    prepare.main([text for name, path in flags.items() for text in (f"--{name}", str(path))])
    return out


def hashes(out: Path) -> dict[str, str]:
    """Of all outputs; what waits for the next run is none."""
    files = (path for path in out.glob("[!.]*/**/[!.]*") if path.is_file())
    files = (*files, *out.glob("*.json"), *out.glob("*.csv"))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def faults(root: Path, out: Path, **changes: Any) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        run(root, out, **changes)
    assert not list(out.rglob(".*")), "temporary files are left"
    found = caught.value.faults
    del caught
    gc.collect()  # the lock of a process goes when the process does; here, with its last reference
    return found


@pytest.mark.parametrize("images", ["images/part", "part"])
def test_labels_that_come_later_leave_the_images_as_they_are(tmp_path: Path, images: str) -> None:
    """So that a training without labels can be scored afterwards."""
    labels = tmp_path / "set/labels" / Path(images).relative_to("images" if images != "part" else ".")
    for index in range(20):
        write_image(tmp_path / "set" / images / f"{index}.png", noise(index, 40, 40))
    first = hashes(run(tmp_path / "set", tmp_path / "first", prepare__split__by="fraction"))
    names = read_index(tmp_path / "first/images/val")["source"]
    assert 0 < len(names) < 20
    for name in names:
        write_image(labels / Path(name).with_suffix(".png").name, np.ones((40, 40), np.uint8))
    (tmp_path / "set/classes.txt").write_text("a\nb\n")
    second = hashes(run(tmp_path / "set", tmp_path / "second", prepare__split__by="fraction"))
    changed = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    assert {name.partition("/")[0] for name in changed} == {"truth", "prepare.json"}


def test_settings_that_the_data_is_too_small_for_are_refused_at_once(root: Path, tmp_path: Path) -> None:
    found = faults(root, tmp_path / "out", pretrain__batch_size=8, pretrain__queue_size=16, global_k=7)
    params = tmp_path / "out" / "params.yaml"
    assert found == (
        f"{params}: pretrain.batch_size: 8 is more than the 6 training images; lower it, or add images",
        f"{params}: pretrain.queue_size: 16 is more than the 6 training images, so images would be their own "
        "negatives; about half of the images is a good size",
        f"{params}: global_k: 7 clusters need at least as many views, but there are 6 "
        "(label.fit_views: whole, label.sample_views: 50000); lower global_k, or add images",
    )
    assert not (tmp_path / "out" / "images").exists()


def test_writes_images_index_truth_and_metrics(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(root, tmp_path / "out")
    assert sorted(hashes(out)) == [
        "images/train/images.npy", "images/train/index.csv", "images/val/images.npy", "images/val/index.csv",
        "left_out.csv", "prepare.json", "truth/classes.csv", "truth/val.npy",
    ]  # fmt: skip
    assert open_images(out / "images" / "train").shape == (6, TRAIN_PX, TRAIN_PX, 3)
    assert open_images(out / "images" / "val").shape == (4, SIZE_PX, SIZE_PX, 3)
    index = read_index(out / "images" / "train")
    assert list(index["id"]) == [f"part/{number:03d}" for number in range(6)]
    assert tuple(index.loc[1, ["source", "width", "height"]]) == ("images/train/part/001.png", 30, 50)
    content = (root / "images/train/part/001.png").read_bytes()
    assert index.loc[1, "sha256"] == hashlib.sha256(content).hexdigest()
    truth = read_truth(out / "truth")
    assert truth.has_labels
    assert truth.class_names == CLASS_NAMES
    assert truth.maps.shape == (4, SIZE_PX, SIZE_PX)
    assert set(np.unique(truth.maps)) == {0, 1, 2, IGNORED}
    summary = read_metrics(out / "prepare.json")["prepare"]
    assert (summary["train_images"], summary["val_images"], summary["classes"]) == (6, 4, 3)
    assert summary["labelled_share"] == pytest.approx(float((truth.maps != IGNORED).mean()), abs=1e-6)
    assert sum(summary["class_shares"].values()) == pytest.approx(1, abs=1e-5)
    assert summary["manifest_sha256"] == folder_manifest(root)
    assert "ignored: " in capsys.readouterr().out


def test_images_and_label_maps_stay_aligned(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", sizes=((SIZE_PX, SIZE_PX),))
    out = run(root, tmp_path / "out")
    original = np.asarray(Image.open(root / "images/val/part/002.png"))
    labels = np.asarray(Image.open(root / "labels/val/part/002.png"))
    np.testing.assert_array_equal(open_images(out / "images" / "val")[2], original)
    np.testing.assert_array_equal(read_truth(out / "truth").maps[2], labels)


def test_same_bytes_again_and_with_two_workers(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", num_train=40)
    first = hashes(run(root, tmp_path / "first"))
    assert hashes(run(root, tmp_path / "second")) == first
    assert hashes(run(root, tmp_path / "third", runtime__num_workers=2)) == first


def test_demo_needs_no_data(tmp_path: Path) -> None:
    changes = {"prepare__demo__num_train": 3, "prepare__demo__num_val": 2}
    out = run(None, tmp_path / "out", **changes)
    assert open_images(out / "images" / "train").shape == (3, TRAIN_PX, TRAIN_PX, 3)
    truth = read_truth(out / "truth")
    assert len(truth.class_names) == 9
    assert dict(zip(truth.class_names, truth.class_kinds, strict=True))["sky"] == "stuff"
    assert truth.class_kinds.count("thing") == 4
    again = run(None, tmp_path / "again", **changes, seed=7)
    assert hashes(again) == hashes(out)


def test_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "set", labels=False)
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/000.png").write_text("never opened")
    out = run(root, tmp_path / "out")
    truth = read_truth(out / "truth")
    assert not truth.has_labels
    assert (truth.maps == IGNORED).all()
    summary = read_metrics(out / "prepare.json")["prepare"]
    assert (summary["classes"], summary["labelled_share"], summary["class_shares"]) == (0, 0.0, {})
    assert "no label maps (labels/val)" in capsys.readouterr().out


def test_a_relative_path_is_below_the_repository(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert run(Path("set"), tmp_path / "out").exists()


def test_ids_that_look_like_numbers_or_nothing_stay_text(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split in ("train", "val"):
        for name in ("0042", "NA", "7.50", 'comma, "quote"'):
            write_image(root / "images" / split / f"{name}.png", noise(len(name), 8, 8))
    out = run(root, tmp_path / "out")
    assert list(read_index(out / "images" / "val")["id"]) == ["0042", "7.50", "NA", 'comma, "quote"']


def test_hidden_and_other_files_are_passed_over_and_links_followed(root: Path, tmp_path: Path) -> None:
    (root / "images/train/.DS_Store").write_text("x")
    (root / "images/train/._000.png").write_text("x")
    (root / "images/train/notes.txt").write_text("x")
    elsewhere = tmp_path / "elsewhere"
    write_image(elsewhere / "a.JPG", np.zeros((40, 40, 3), np.uint8))
    (root / "images/train/linked").symlink_to(elsewhere)
    (root / "images/train/loop").symlink_to(root / "images/train")
    out = run(root, tmp_path / "out")
    assert len(read_index(out / "images" / "train")) == 7


def test_every_fault_of_the_names_at_once(tmp_path: Path) -> None:
    root = tmp_path / "set"
    pixels = np.zeros((8, 8, 3), np.uint8)
    for name in ("a.png", "a.jpg", "bad\nname.png"):
        write_image(root / "images/train" / name, pixels)
    for index in range(12):
        write_image(root / "images/val" / f"{index:02d}.png", pixels)
    write_image(root / "labels/val/11.png", pixels[..., 0])
    listed = ", ".join(f"labels/val/{index:02d}.png" for index in range(10))
    assert faults(root, tmp_path / "out") == (
        "'images/train/bad\\nname.png': the name has control characters or is not UTF-8; rename it",
        "images/train/a.jpg, images/train/a.png: have the same name but for the suffix; rename one or move "
        "it away (label maps belong in labels/)",
        f"{root}/labels/val: 11 of 12 validation images have no label map ({listed}, ...); "
        "label all of them, or remove the folder",
        f"{root}/classes.txt: not found, but there are label maps; add it with one class name per line",
    )


def test_missing_folders(tmp_path: Path) -> None:
    root = tmp_path / "set"
    assert faults(root, tmp_path / "out") == (
        f"{root}: no such folder; set prepare.path in params.yaml to the folder of your images",
    )
    (root / "images/train").mkdir(parents=True)
    assert faults(root, tmp_path / "out") == (
        f"{root}/images/train: has no images (.jpg, .jpeg, .jpe, .jfif, .png, .webp, .avif, .bmp, .tif, "
        ".tiff); add images",
        f"{root}/images/val: no such folder; put the validation images in it",
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is empty; add one class name per line, starting with class id 0"),
        ("sky\n\ncow\n", "line 2 is empty; every line must be a class name"),
        ("sky\ncow\nsky\n", "has 'sky' more than once; class names must be unique"),
        ("\n".join(map(str, range(256))), "has 256 classes, but the largest class id is 254; merge classes"),
        (b"\xff\xfes", "is not UTF-8 text; save it as UTF-8"),
    ],
)
def test_classes_txt(root: Path, tmp_path: Path, text: str | bytes, rule: str) -> None:
    (root / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert faults(root, tmp_path / "out") == (f"{root}/classes.txt: {rule}",)


def test_every_fault_of_the_contents_at_once_and_old_outputs_stay(root: Path, tmp_path: Path) -> None:
    out = run(root, tmp_path / "out")
    before = hashes(out)
    train, val, labels = root / "images/train/part", root / "images/val/part", root / "labels/val/part"
    (train / "000.png").write_bytes(b"")
    (train / "001.png").write_text("not an image")
    (train / "002.png").write_bytes((train / "002.png").read_bytes()[:200])
    write_image(train / "003.tif", np.zeros((8, 8), np.float32))
    (train / "003.png").unlink()
    write_image(train / "004.png", np.zeros((1, 3000, 3), np.uint8))
    write_image(labels / "000.png", np.zeros((9, 8), np.uint8))
    write_image(labels / "001.png", np.array([[3, 7], [255, 0]], np.uint8))
    write_image(val / "001.png", np.zeros((2, 2, 3), np.uint8))
    write_image(labels / "002.png", np.full((40, 40, 3), (0, 0, 200), np.uint8))
    (labels / "003.png").write_text("not an image")
    (val / "003.png").write_text("not an image either")
    found = faults(root, out, prepare__train_px=200)
    patterns = [
        r".+/set: 5 of 10 images are damaged, more than prepare.most_damaged: 0.05; repair or remove them, "
        r"or raise it; .+/\.state/prepare/\w+/left_out\.csv names all of them",
        "images/train/part/000.png: is empty; replace or remove it",
        "images/train/part/001.png: is not an image format supported by Pillow; replace or remove it",
        r"images/train/part/002.png: cannot be decoded \(.+\); replace or remove it",
        "images/train/part/003.tif: has 32-bit floating-point pixels; save it with 8 or 16 bits per channel",
        "images/train/part/004.png: is 3000 x 1 px, too narrow to bring its shorter side to 200 px; "
        "crop or remove it",
        "labels/val/part/000.png: is 8 x 9 px, but images/val/part/000.png is 48 x 36 px as displayed; "
        "label maps must match their images",
        "labels/val/part/001.png: has class ids 3, 7, but classes.txt has 3 classes "
        r"\(ids 0 to 2, and 255 = ignored\); correct it, or add labels.csv",
        r"labels/val/part/002.png: has colors in place of class ids \(#0000c8\); add labels.csv with the "
        "header value,class and a line for each color, such as #0000c8,NAME",
        "images/val/part/003.png: is not an image format supported by Pillow; replace or remove it",
        "labels/val/part/003.png: is not an image format supported by Pillow; replace or remove it",
    ]
    assert len(found) == len(patterns)
    for fault, pattern in zip(found, patterns, strict=True):
        assert re.fullmatch(pattern, fault), fault
    assert hashes(out) == before


def test_three_hundred_files_of_one_fault_are_one_line(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", num_train=1, labels=False)
    for index in range(300):
        (root / f"images/train/{index:03d}.jpg").write_text("x")
    too_many, alike = faults(root, tmp_path / "out")
    assert alike == (
        "images/train/000.jpg, images/train/001.jpg, images/train/002.jpg, ... (300 files): is not an image "
        "format supported by Pillow; replace or remove it"
    )
    said, _, listing = too_many.removesuffix(" names all of them").rpartition(" ")
    assert said.endswith(
        "300 of 305 images are damaged, more than prepare.most_damaged: 0.05; repair or remove them, or "
        "raise it;"
    )
    table = pd.read_csv(listing)
    assert table["file"].tolist() == [f"images/train/{index:03d}.jpg" for index in range(300)]
    assert set(table["reason"]) == {
        "damaged: is not an image format supported by Pillow; replace or remove it"
    }


def test_that_there_are_too_many_is_said_first_however_many_kinds_of_faults_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOST_BYTES", 10_000)
    root = make_folder(tmp_path / "set", labels=False)
    for index in range(25):
        (root / f"images/train/{index:02d}.png").write_bytes(bytes(20_000 + index))
    found = faults(root, tmp_path / "out")
    assert len(found) == 21
    assert "25 of 35 images are damaged" in found[0]


def test_no_more_than_twenty_kinds_of_faults_are_listed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", num_train=30, num_val=30)
    for index in range(30):
        size = (10 + index, 8)
        write_image(root / f"labels/val/part/{index:03d}.png", np.zeros(size, np.uint8))
    found = faults(root, tmp_path / "out")
    assert len(found) == 21
    assert found[-1] == "... and 10 more faults (30 in total)"


def test_a_bomb_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 40)
    assert faults(root, tmp_path / "out")[1].endswith(
        "(6 files): has more than 1600 pixels, Pillow's limit against decompression bombs; "
        "scale it down or remove it"
    )


def test_changed_data_is_a_changed_param(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    pinned = folder_manifest(root)
    assert run(root, tmp_path / "out", prepare__manifest_sha256=pinned).exists()
    (root / "classes.txt").write_text("sky\ngrass\nhorse\n")
    said = (
        "prepare.manifest_sha256: files have changed; accept the files as they are with "
        f"`make pin`, or restore them (pinned {pinned[:12]}, found {folder_manifest(root)[:12]})"
    )
    assert faults(root, tmp_path / "out", prepare__manifest_sha256=pinned) == (said,)
    monkeypatch.setenv("DVC_EXP_NAME", "k6")
    said += "; if a setting of this experiment alone chooses other files, set prepare.manifest_sha256 to '' "
    said += "with it"
    assert faults(root, tmp_path / "out", prepare__manifest_sha256=pinned) == (said,)


def test_images_that_were_added_are_named_before_anything_is_packed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # where the listing of the pinned files lies
    data = list_data(prepare_settings(reader="folder", path=str(root)))
    write_listing(root, raw_files(data))
    pinned = manifest_sha256(data)
    assert run(root, tmp_path / "out", prepare__manifest_sha256=pinned).exists()
    write_image(root / "images/train/new.png", noise(1, SIZE_PX, SIZE_PX))
    monkeypatch.setattr(packed_splits, "pack", lambda *_: pytest.fail("packing has begun"))
    (message,) = faults(root, tmp_path / "out", prepare__manifest_sha256=pinned)
    assert "files have changed: 1 added (images/train/new.png), 0 gone, 0 changed; accept" in message


def test_a_full_disk_is_noticed_first(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SPARE_BYTES", 10**18)
    out = tmp_path / "out"
    (message,) = faults(root, out)
    pattern = (
        rf"{out}/images/train: packing 6 \+ 4 images needs 1,000,000,000,000 MB, but only [\d,]+ MB are "
        rf"free; free disk space, or lower prepare.train_px \(now {TRAIN_PX}\)"
    )
    assert re.fullmatch(pattern, message), message


def test_class_names_and_kinds_come_back_as_they_were(tmp_path: Path) -> None:
    names = ("007", "NA", 'a, "b"')
    np.save(tmp_path / "val.npy", np.zeros((1, 4, 4), np.uint8))
    write_classes(tmp_path, names, ("thing", "stuff", ""))
    truth = read_truth(tmp_path)
    assert (truth.class_names, truth.class_kinds) == (names, ("thing", "stuff", ""))
    write_classes(tmp_path, names)
    assert read_truth(tmp_path).class_kinds == ("", "", "")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("id,name\n0,sky\n", "is not a table of id, name, kind with ids 0, 1, ...; delete the folder"),
        ("id,name,kind\n1,sky,\n", "is not a table of id, name, kind with ids 0, 1, ...; delete the folder"),
        ("id,name,kind\n0,sky,blue\n", "has the kind 'blue', expected thing, stuff or nothing; delete"),
    ],
)
def test_a_damaged_class_table_is_named(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'classes.csv'}: {rule}")):
        read_truth(tmp_path)


@pytest.mark.parametrize("spoil", ["missing", "dtype", "rows", "truncated", "no index"])
def test_a_damaged_store_is_named(root: Path, tmp_path: Path, spoil: str) -> None:
    images = run(root, tmp_path / "out") / "images"
    path = images / "train/images.npy"
    if spoil == "missing":
        path.unlink()
    elif spoil == "dtype":
        np.save(path, np.zeros((6, 4, 4, 3), np.float32))
    elif spoil == "rows":
        np.save(path, np.zeros((5, 4, 4, 3), np.uint8))
    elif spoil == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        (images / "train/index.csv").unlink()
    with pytest.raises(UserError, match=r"dvc repro") as caught:
        open_images(images / "train")
    assert str(images / "train") in str(caught.value)


# Own images: which are for training and which for validation


def make_pool(root: Path, num_images: int = 10) -> Path:
    """Images without folders for training and validation, all labelled."""
    for index in range(num_images):
        write_image(root / f"images/day/{index}.png", noise(index, SIZE_PX, SIZE_PX))
        write_image(root / f"labels/day/{index}.png", np.full((SIZE_PX, SIZE_PX), index % 3, np.uint8))
    (root / "classes.txt").write_text("sky\ngrass\ncow\n")
    return root


def ids(out: Path, split: str) -> list[str]:
    return list(read_index(out / "images" / split)["id"])


def test_a_lot_splits_by_fraction_and_seed(tmp_path: Path) -> None:
    root = make_pool(tmp_path / "set")
    by = {"prepare__split__by": "fraction", "prepare__split__val_fraction": 0.3}
    out = run(root, tmp_path / "out", **by)
    train, val = ids(out, "train"), ids(out, "val")
    assert train
    assert val
    assert sorted(train + val) == [f"day/{index}" for index in range(10)]
    maps = read_truth(out / "truth").maps
    assert [int(labels[0, 0]) for labels in maps] == [int(id_[-1]) % 3 for id_ in val]
    assert ids(run(root, tmp_path / "again", **by), "val") == val
    others = [ids(run(root, tmp_path / f"{n}", **by, prepare__split__seed=n), "val") for n in (1, 2)]
    assert any(other != val for other in others)


def test_a_lot_leaves_an_image_on_both_sides(tmp_path: Path) -> None:
    root = make_pool(tmp_path / "set", 3)
    for fraction, expected in ((0.01, 1), (0.99, 2)):
        split = {"split__by": "fraction", "split__val_fraction": fraction, "split__seed": 0}
        settings = prepare_settings(reader="folder", path=str(root), **split)
        assert len(list_data(settings).val) == expected


def test_lists_name_images_by_id_or_path(tmp_path: Path) -> None:
    root = make_pool(tmp_path / "set", 7)
    (root / "train.txt").write_text("".join(f"day/{n}.png\n" for n in (5, 4, 3, 2)))
    (root / "val.txt").write_text("day/1\n\nday/0\n")
    out = run(root, tmp_path / "out", prepare__split__by="lists")
    assert ids(out, "train") == ["day/2", "day/3", "day/4", "day/5"]
    assert ids(out, "val") == ["day/0", "day/1"]
    assert read_metrics(out / "prepare.json")["prepare"]["left_out"] == {
        "in neither list": {"files": 1, "examples": ["images/day/6.png"]},
        "label map of a training image, never read": {
            "files": 4,
            "examples": ["labels/day/2.png", "labels/day/3.png", "labels/day/4.png"],
        },
        "label map of no validation image": {"files": 1, "examples": ["labels/day/6.png"]},
    }
    pinned = read_metrics(out / "prepare.json")["prepare"]["manifest_sha256"]
    (root / "val.txt").write_text("day/1\nday/0\n")
    (message,) = faults(root, out, prepare__split__by="lists", prepare__manifest_sha256=pinned)
    assert "files have changed" in message


def test_faults_of_lists(tmp_path: Path) -> None:
    root = make_pool(tmp_path / "set", 4)
    (root / "train.txt").write_text("day/0\nday/1\nnight/0\n")
    assert faults(root, tmp_path / "out", prepare__split__by="lists") == (
        f"{root}/train.txt: 1 of 3 lines match no image below images/ (night/0); correct the list or add the "
        "images",
        f"{root}/val.txt: not found; add it with one name per line",
    )
    (root / "train.txt").write_text("day/0\nday/1\n")
    (root / "val.txt").write_text("day/1.png\n")
    assert faults(root, tmp_path / "out", prepare__split__by="lists") == (
        f"{root}: train.txt and val.txt share 1 images (day/1); training and validation images must "
        "differ: remove each image from one of the lists",
    )
    (root / "val.txt").write_text("\n")
    assert faults(root, tmp_path / "out", prepare__split__by="lists") == (
        f"{root}/val.txt: is empty; add one image per line",
    )


def test_a_file_that_is_too_large_for_a_picture(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOST_BYTES", 1000)
    (root / "images/train/part/000.png").write_bytes(bytes(2000))
    assert (
        "images/train/part/000.png: has 2,000 bytes, more than the maximum of 1,000; "
        "scale it down or remove it"
    ) in faults(root, tmp_path / "out")


def test_what_was_read_is_summarised(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "images/train/.DS_Store").write_text("x")
    (root / "images/val/notes.txt").write_text("x")
    (root / "images/val/more.txt").write_text("x")
    summary = read_metrics(run(root, tmp_path / "out") / "prepare.json")["prepare"]
    assert summary["left_out"] == {
        "hidden, or made by the system": {"files": 1, "examples": ["images/train/.DS_Store"]},
        "no picture by its suffix": {"files": 2, "examples": ["images/val/more.txt", "images/val/notes.txt"]},
    }
    assert summary["warnings"] == []
    assert summary["sizes_px"]["train"] == {
        "width": {"min": 30, "median": 40, "max": 48},
        "height": {"min": 36, "median": 40, "max": 50},
    }
    assert summary["ignored_share"] == pytest.approx(1 - summary["labelled_share"], abs=2e-6)
    assert "prepare: left out 2: no picture by its suffix (images/val/more.txt," in capsys.readouterr().out


# Going on after a kill


class Spy:
    """Decodes, writes down what, and fails when it is told to."""

    def __init__(self, decode: Decode, fails_at: int) -> None:
        self.decode, self.fails_at, self.seen = decode, fails_at, list[str]()

    def __call__(self, item: Item) -> Decoded:
        if len(self.seen) == self.fails_at:
            raise KeyboardInterrupt
        self.seen.append(item.source)
        return self.decode(item)


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Spy]:
    """Puts a spy in front of the decoder of the next run, to break it off after a number of images."""

    def spy(fails_at: int) -> Spy:
        def surveyed(data: DataSet) -> DataSet:
            found = survey(data)
            spy.decode = found.decode
            return replace(found, decode=spy)

        spy = Spy(lambda item: pytest.fail(item.id), fails_at)
        monkeypatch.setattr(prepare, "survey", surveyed)
        monkeypatch.setattr(prepare, "decoding", lambda data: decoding(replace(data, decode=spy.decode)))
        return spy

    return spy


def test_a_killed_run_is_gone_on_with(
    tmp_path: Path, spied: Callable[[int], Spy], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "set", num_train=40, num_val=20)
    whole = hashes(run(root, tmp_path / "whole"))
    spied(36)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "out")
    assert not (tmp_path / "out/images").exists()
    capsys.readouterr()
    second = spied(-1)
    assert hashes(run(root, tmp_path / "out")) == whole
    assert "prepare: 32 of 60 images are already packed by an earlier run" in capsys.readouterr().out
    assert len(second.seen) == 28
    assert not list((tmp_path / "out").rglob(".*"))
    assert not [path for path in (tmp_path / ".state").rglob("*") if path.is_file()]


def test_a_kill_that_nothing_can_catch(tmp_path: Path) -> None:
    root, out = make_folder(tmp_path / "set", num_train=220, num_val=2), tmp_path / "out"
    settings = {"prepare.reader": "folder", "prepare.path": str(root), "runtime.num_workers": 2}
    settings |= {"size_px": SIZE_PX, "prepare.train_px": TRAIN_PX, "runtime.checkpoint_seconds": 0}
    write_params(out / "params.yaml", {**FITTING, **settings})
    argv = ["--train-images", "images/train", "--val-images", "images/val", "--truth", "truth"]
    argv += ["--left-out", "left_out.csv", "--metrics", "prepare.json"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "stages.prepare", *argv]
    process = subprocess.Popen(command, cwd=out, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / ".state").rglob("state.safetensors")):
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(children) >= 2
    give_up = time.monotonic() + 60
    while any(_is_at_work(pid) for pid in children):
        assert time.monotonic() < give_up, "workers outlive their parent"
        time.sleep(0.05)
    again = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, check=True)
    assert "of 222 images are already packed by an earlier run" in again.stdout
    assert hashes(out) == hashes(run(root, tmp_path / "whole"))


def _is_at_work(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("change", ["file", "settings"])
def test_what_changed_since_is_made_again(tmp_path: Path, spied: Callable[[int], Spy], change: str) -> None:
    root = make_folder(tmp_path / "set", num_train=40, num_val=2)
    spied(36)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "out")
    settings = {}
    if change == "file":
        write_image(root / "images/train/part/005.png", np.zeros((40, 40, 3), np.uint8))
    else:
        settings = {"prepare__train_px": TRAIN_PX + 1}
    second = spied(-1)
    out = run(root, tmp_path / "out", **settings)
    assert second.seen.count("images/train/part/005.png") == 1
    assert len(second.seen) == (42 if change == "settings" else 11)
    spied(-1)
    assert hashes(run(root, tmp_path / "whole", **settings)) == hashes(out)


def test_files_that_change_after_they_were_read(
    tmp_path: Path, spied: Callable[[int], Spy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run packs these alone."""
    root, names = make_folder(tmp_path / "set"), ["images/train/part/001.png", "labels/val/part/002.png"]
    pack = packed_splits.pack

    def pack_and_change(*args: Any) -> Any:
        yield from pack(*args)
        for name in (*names, "classes.txt"):
            os.utime(root / name)
        (root / "images/train/part/003.png").unlink()

    with monkeypatch.context() as inner:
        inner.setattr(packed_splits, "pack", pack_and_change)
        found = faults(root, tmp_path / "out")
    changed = [names[0], "images/train/part/003.png", names[1], "classes.txt"]
    shown = f"{', '.join(changed[:3])}, ... (4 files)"
    assert found == (f"{shown}: changed after it was read; run `dvc repro` again",)
    assert hashes(tmp_path / "out") == {}
    write_image(root / "images/train/part/003.png", np.zeros((40, 40, 3), np.uint8))
    second = spied(-1)
    run(root, tmp_path / "out")
    assert sorted(second.seen) == [
        "images/train/part/001.png",
        "images/train/part/003.png",
        "images/val/part/002.png",
    ]


def test_params_that_change_while_it_runs(root: Path, tmp_path: Path, change_at_end: Any) -> None:
    out = tmp_path / "out"
    change_at_end(lambda: write_params(out / "params.yaml", {**FITTING, "size_px": 2 * SIZE_PX}))
    found = faults(root, out)
    (folder,) = (tmp_path / ".state/prepare").iterdir()
    assert found == (
        "prepare: changed while it ran: param size_px, param prepare; its result would belong to neither the "
        "old nor the new, so nothing is written; "
        f"run `dvc repro` again (the state of this run stays in {folder})",
    )
    assert hashes(out) == {}


def test_params_that_change_while_files_are_listed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing a large data set takes minutes."""

    def survey_and_change(data: DataSet) -> DataSet:
        write_params(tmp_path / "out/params.yaml", {**FITTING, "size_px": 2 * SIZE_PX})
        return survey(data)

    monkeypatch.setattr(prepare, "survey", survey_and_change)
    (found,) = faults(root, tmp_path / "out")
    assert found.startswith("prepare: changed while it ran: param size_px, param prepare;")


def test_another_pin_costs_no_image(tmp_path: Path, spied: Callable[[int], Spy]) -> None:
    root = make_folder(tmp_path / "set")
    assert "files have changed" in str(faults(root, tmp_path / "out", prepare__manifest_sha256="0" * 64))
    second = spied(-1)
    run(root, tmp_path / "out", prepare__manifest_sha256=folder_manifest(root))
    assert second.seen == []


def test_a_mended_image_is_all_that_is_read_again(tmp_path: Path, spied: Callable[[int], Spy]) -> None:
    root = make_folder(tmp_path / "set", num_train=20)
    path = root / "images/train/part/003.png"
    content = path.read_bytes()
    path.write_bytes(b"")
    faults(root, tmp_path / "out", prepare__most_damaged=0.0)
    path.write_bytes(content)
    second = spied(-1)
    run(root, tmp_path / "out")
    assert second.seen == ["images/train/part/003.png"]


def test_two_at_a_time_are_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []

    def pack_and_run(*args: Any) -> Any:
        messages.extend(faults(root, tmp_path / "out"))
        raise KeyboardInterrupt

    monkeypatch.setattr(packed_splits, "pack", pack_and_run)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "out")
    (lock,) = (tmp_path / ".state").rglob("lock")
    assert messages == [
        f"prepare: another process is running this stage (lock: {lock}); wait for it to end or stop it, "
        "then run `dvc repro` again"
    ]


def test_a_worker_does_not_load_torch() -> None:
    """It imports the script of the stage anew; torch would take each worker seconds and 0.4 GB."""
    program = "import sys; import stages.prepare, stages.dataset.pack; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
