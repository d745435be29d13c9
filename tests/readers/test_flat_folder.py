"""A folder of photographs and nothing else, as it comes from a camera; and the split that stays."""

import shutil
from pathlib import Path

import pytest

from stages.dataset.left_out import ELSEWHERE, MASK, SPARE_LABELS, TRAIN_LABELS
from stages.dataset.source import DataSet, list_data
from stages.settings.errors import UserError
from tests.datasets import noise, prepare_settings, write_image


def listed(root: Path, fraction: float = 0.3, seed: int = 0) -> DataSet:
    split = {"split__by": "fraction", "split__val_fraction": fraction, "split__seed": seed}
    return list_data(prepare_settings(reader="folder", path=str(root), **split))


def sources(data: DataSet) -> list[str]:
    return sorted(item.source for item in (*data.train, *data.val))


def photographs(root: Path, count: int, first: int = 0) -> Path:
    for number in range(first, first + count):
        write_image(root / f"{number:03d}.png", noise(number, 8, 8))
    return root


def test_all_images_in_subfolders_of_any_name_are_read(tmp_path: Path) -> None:
    names = ["a.jpg", "2019/b.PNG", "2019/at the sea/c.webp", "Images/d.bmp", "é/e.tif", "label/f.png"]
    names += ["g.jpe", "h.JFIF", "i.avif"]
    for number, name in enumerate(names):
        write_image(tmp_path / name, noise(number, 8, 8))
    (tmp_path / "notes.txt").write_text("x")
    data = listed(tmp_path)
    assert sources(data) == sorted(names)
    assert {item.id for item in (*data.train, *data.val)} == {name.rpartition(".")[0] for name in names}
    assert data.notes == (
        f"{tmp_path}: has no folder images/; every image in it and its subfolders is a photograph",
    )
    assert {reason: names.count for reason, names in data.left_out.items()} == {"no picture by its suffix": 1}


@pytest.mark.parametrize("folder", ["masks", "sub/GT", "annotations/labels/deep"])
def test_label_maps_in_a_folder_of_their_own_are_no_photographs(tmp_path: Path, folder: str) -> None:
    photographs(tmp_path / "camera", 4)
    for number in range(3):
        write_image(tmp_path / folder / f"{number:03d}.png", noise(90 + number, 8, 8))
    data = listed(tmp_path)
    assert sources(data) == [f"camera/{number:03d}.png" for number in range(4)]
    assert {reason: names.count for reason, names in data.left_out.items()} == {MASK: 3}


def test_a_folder_that_is_only_called_like_one_of_label_maps_has_photographs(tmp_path: Path) -> None:
    """Below images/ as well, and also if a few names happen to be the same."""
    photographs(tmp_path / "images/shop", 4)
    for name in ("front/box 0", "front/box 1", "front/box 2", "000"):
        write_image(tmp_path / f"images/label/{name}.png", noise(90 + len(name), 8, 8))
    data = listed(tmp_path)
    assert len(sources(data)) == 8
    assert data.left_out == {}


def test_photographs_in_formats_that_are_not_read_are_named_if_there_are_no_others(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(b"x")
    with pytest.raises(UserError) as raised:
        listed(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: has no images (.jpg, .jpeg, .jpe, .jfif, .png, .webp, .avif, .bmp, .tif, .tiff); left "
        "out 2: picture in HEIC; convert it to JPEG, for example with ImageMagick: mogrify -format jpg "
        "*.heic (IMG_0.HEIC, IMG_1.HEIC); add images"
    )


def test_labels_are_for_validation_images_and_never_read_for_others(tmp_path: Path) -> None:
    photographs(tmp_path, 10)
    for number in range(11):
        write_image(tmp_path / f"labels/{number:03d}.png", noise(50 + number, 8, 8)[..., 0] % 2)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    data = listed(tmp_path)
    assert sources(data) == [f"{number:03d}.png" for number in range(10)]
    assert [item.labels for item in data.val] == [f"labels/{item.id}.png" for item in data.val]
    assert {item.labels for item in data.train} == {None}
    counts = {reason: names.count for reason, names in data.left_out.items()}
    assert counts == {TRAIN_LABELS: len(data.train), SPARE_LABELS: 1}


def test_photographs_added_after_labeling_go_to_training_alone_once_it_is_split_by_folders(
    tmp_path: Path,
) -> None:
    """As docs/photographs.md says under Adding photographs."""
    photographs(tmp_path, 20)
    before = listed(tmp_path)
    for item in before.val:
        write_image(tmp_path / f"labels/{item.id}.png", noise(7, 8, 8)[..., 0] % 2)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    photographs(tmp_path / "new", 20, first=20)
    with pytest.raises(UserError, match=r"; label all of them, remove the folder, or split by folders \("):
        listed(tmp_path)
    for folder, items in (("images/train", before.train), ("images/val", before.val)):
        (tmp_path / folder).mkdir(parents=True)
        for item in items:
            (tmp_path / item.source).rename(tmp_path / folder / item.source)
    (tmp_path / "labels").rename(tmp_path / "maps")
    (tmp_path / "labels").mkdir()
    (tmp_path / "maps").rename(tmp_path / "labels/val")
    (tmp_path / "new").rename(tmp_path / "images/train/new")
    after = list_data(prepare_settings(reader="folder", path=str(tmp_path), split__by="folder"))
    assert [item.id for item in after.val] == [item.id for item in before.val]
    assert all(item.labels == f"labels/val/{item.id}.png" for item in after.val)
    assert len(after.train) == len(before.train) + 20
    assert after.left_out == {}


def test_a_folder_images_wins_and_what_lies_beside_it_is_counted(tmp_path: Path) -> None:
    photographs(tmp_path / "images", 5)
    photographs(tmp_path / "loose", 2, first=20)
    write_image(tmp_path / "alone.png", noise(30, 8, 8))
    data = listed(tmp_path)
    assert sources(data) == [f"images/{number:03d}.png" for number in range(5)]
    assert data.left_out[ELSEWHERE].count == 3
    assert data.left_out[ELSEWHERE].examples == ["alone.png", "loose/020.png", "loose/021.png"]


def test_train_and_val_without_images_are_folders_like_any_other(tmp_path: Path) -> None:
    photographs(tmp_path / "train", 4)
    photographs(tmp_path / "val", 2, first=10)
    data = listed(tmp_path)
    assert len(sources(data)) == 6
    assert data.notes[1] == (
        f"{tmp_path}: train/ and val/ are taken for subfolders like any other; to split by them, move them "
        "into a folder images/"
    )


def test_where_chance_leaves_no_image_for_validation_it_is_said(tmp_path: Path) -> None:
    """Of many sets of two images, about 64 % have no number below 0.2."""
    said = 0
    for first in range(20):
        photographs(tmp_path / str(first), 2, first=2 * first)
        data = listed(tmp_path / str(first))
        assert (len(data.train), len(data.val)) == (1, 1)
        said += any("by chance no image has a number below" in note for note in data.notes)
    assert 6 <= said <= 19


def test_two_names_that_differ_in_their_suffix_are_refused(tmp_path: Path) -> None:
    """One of them may be a label map, and to learn from those would be worse than to stop."""
    photographs(tmp_path, 3)
    write_image(tmp_path / "001.jpg", noise(9, 8, 8))
    with pytest.raises(UserError) as raised:
        listed(tmp_path)
    assert str(raised.value) == (
        "001.jpg, 001.png: have the same name but for the suffix; rename one or move it away (label maps "
        "belong in labels/)"
    )


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no images \(\.jpg, .*\); add images"):
        listed(tmp_path)


# The split


def val_of(data: DataSet) -> set[str]:
    return {item.source for item in data.val}


def test_an_image_stays_on_its_side_when_others_come_or_go(tmp_path: Path) -> None:
    root = photographs(tmp_path, 40)
    before = listed(root)
    photographs(root, 25, first=100)
    after = listed(root)
    assert val_of(after) & {item.source for item in before.train} == set()
    assert val_of(before) <= val_of(after)
    for number in range(0, 40, 3):
        (root / f"{number:03d}.png").unlink()
    assert val_of(listed(root)) == {name for name in val_of(after) if (root / name).exists()}


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    root = photographs(tmp_path / "one", 30)
    other = tmp_path / "two" / "in another place"
    other.mkdir(parents=True)
    for number in range(30):
        shutil.copy(root / f"{number:03d}.png", other / f"x{99 - number}.png")
    renamed = {f"in another place/x{99 - int(name[:3])}.png" for name in val_of(listed(root))}
    assert val_of(listed(tmp_path / "two")) == renamed


def test_copies_of_an_image_share_a_side(tmp_path: Path) -> None:
    root = photographs(tmp_path, 20)
    for number in range(20):
        shutil.copy(root / f"{number:03d}.png", root / f"copy {number:03d}.png")
    val = val_of(listed(root))
    assert {f"copy {name}" for name in val if not name.startswith("copy")} == {
        name for name in val if name.startswith("copy")
    }


def test_the_share_is_close_to_the_fraction(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.png").write_bytes(b"%d" % number)  # nothing is decoded while listing
    for fraction in (0.05, 0.2, 0.5):
        share = len(listed(tmp_path, fraction).val) / 1000
        assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / 1000) ** 0.5
    assert val_of(listed(tmp_path, 0.2, seed=1)) != val_of(listed(tmp_path, 0.2))


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_each_side_has_an_image(tmp_path: Path, fraction: float) -> None:
    data = listed(photographs(tmp_path, 3), fraction)
    assert sorted((len(data.train), len(data.val))) == [1, 2]
    assert (len(data.val) == 1) == (fraction < 0.5)


def test_copies_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png", noise(0, 8, 8))
    with pytest.raises(UserError) as raised:
        listed(tmp_path)
    assert str(raised.value) == (
        "prepare.split.by: fraction requires at least two different images; add images"
    )
