"""Links to folders: every photograph is listed once, under a name that no other folder decides."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from stages.dataset.left_out import ELSEWHERE, HIDDEN, LOOP, REPEAT, LeftOut
from stages.dataset.listing import list_images
from stages.dataset.source import DataSet, list_data
from stages.settings.errors import UserError
from tests.datasets import noise, prepare_settings, write_image


def photographs(folder: Path, count: int = 2, first: int = 0) -> Path:
    for number in range(first, first + count):
        write_image(folder / f"{number}.png", noise(number, 8, 8))
    return folder


def listing(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Images, and names that are left out by reason."""
    left_out = LeftOut()
    return list_images(root, left_out), {reason: names.examples for reason, names in left_out.items()}


def prepared(root: Path, by: str = "fraction") -> DataSet:
    return list_data(prepare_settings(reader="folder", path=str(root), split__by=by))


def sources(data: DataSet) -> list[str]:
    return sorted(item.source for item in (*data.train, *data.val))


@pytest.mark.parametrize("real", ["a", "z"], ids=["before its links", "after its links"])
def test_a_folder_with_links_to_it_is_listed_once_under_its_own_name(tmp_path: Path, real: str) -> None:
    photographs(tmp_path / real, 12)
    for name in ("b", "c"):
        (tmp_path / name).symlink_to(real)
    names, left_out = listing(tmp_path)
    assert sorted(names) == sorted(f"{real}/{number}.png" for number in range(12))
    assert left_out == {REPEAT: ["b/", "c/"]}
    assert len(sources(prepared(tmp_path))) == 12


def test_folders_that_link_to_each_other(tmp_path: Path) -> None:
    folders = [photographs(tmp_path / str(number), 1) for number in range(7)]
    for one, other in itertools.permutations(folders, 2):
        (one / f"to {other.name}").symlink_to(other)
    left_out = LeftOut()
    assert list_images(tmp_path, left_out) == [f"{number}/0.png" for number in range(7)]
    assert {reason: names.count for reason, names in left_out.items()} == {REPEAT: 42}


def test_a_folder_outside_has_the_name_of_the_first_link(tmp_path: Path) -> None:
    outside = photographs(tmp_path / "outside")
    photographs(outside / "deep", first=5)
    root = photographs(tmp_path / "root", first=9)
    for name, target in {"b": outside / "deep", "c": outside, "d": outside}.items():
        (root / name).symlink_to(target)
    names, left_out = listing(root)
    assert names == ["10.png", "9.png", "b/5.png", "b/6.png", "c/0.png", "c/1.png"]
    assert left_out == {REPEAT: ["c/deep/", "d/"]}


def test_a_link_is_the_only_way_to_a_hidden_folder(tmp_path: Path) -> None:
    photographs(tmp_path / ".pool")
    (tmp_path / "photos").symlink_to(".pool")
    names, left_out = listing(tmp_path)
    assert names == ["photos/0.png", "photos/1.png"]
    assert left_out == {HIDDEN: [".pool/"]}


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_upwards_ends_there(tmp_path: Path, target: str) -> None:
    photographs(tmp_path / "root/a")
    (tmp_path / "root/a/up").symlink_to(target)
    assert listing(tmp_path / "root") == (["a/0.png", "a/1.png"], {LOOP: ["a/up/"]})


def test_two_folders_outside_that_link_to_each_other(tmp_path: Path) -> None:
    one, two = (photographs(tmp_path / name, 1) for name in ("one", "two"))
    (one / "to").symlink_to(two)
    (two / "to").symlink_to(one)
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(one)
    assert listing(root) == (["link/0.png", "link/to/0.png"], {REPEAT: ["link/to/to/"]})


@pytest.mark.parametrize("pool", ["a pool", "zoo"])
@pytest.mark.parametrize("by", ["folder", "fraction"])
def test_links_into_a_pool_beside_the_images_are_what_is_read(tmp_path: Path, pool: str, by: str) -> None:
    for number, split in enumerate(("train", "val")):
        photographs(tmp_path / pool / split, first=10 * number)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / f"images/{split}").symlink_to(tmp_path / pool / split)
    write_image(tmp_path / pool / "spare/0.png", noise(99, 8, 8))
    data = prepared(tmp_path, by)
    expected = [f"images/{name}.png" for name in ("train/0", "train/1", "val/10", "val/11")]
    assert sources(data) == expected
    assert {reason: names.examples for reason, names in data.left_out.items()} == {
        ELSEWHERE: [f"{pool}/spare/0.png"]
    }


def test_a_split_that_is_a_link_into_the_images_is_read(tmp_path: Path) -> None:
    photographs(tmp_path / "images/all", 4)
    photographs(tmp_path / "images/val", first=8)
    (tmp_path / "images/train").symlink_to("all")
    data = prepared(tmp_path, "folder")
    assert [item.source for item in data.train] == [f"images/train/{number}.png" for number in range(4)]
    assert not data.left_out


def test_label_maps_may_be_a_link_to_a_folder_among_the_photographs(tmp_path: Path) -> None:
    photographs(tmp_path / "camera", 8)
    for number in range(8):
        write_image(tmp_path / f"annotated/{number}.png", noise(number, 8, 8)[..., 0] % 2)
    (tmp_path / "labels").symlink_to("annotated")
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    for number in range(8):
        (tmp_path / f"camera/{number}.png").rename(tmp_path / f"{number}.png")
    data = prepared(tmp_path)
    assert sources(data) == [f"{number}.png" for number in range(8)]
    assert [item.labels for item in data.val] == [f"labels/{item.id}.png" for item in data.val]
    assert REPEAT not in data.left_out


def test_both_splits_may_not_be_one_folder_unseen(tmp_path: Path) -> None:
    """Both are read, so that the warning about copies in training and validation is given."""
    photographs(tmp_path / "pool", 3)
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"images/{split}").symlink_to("../pool")
    data = prepared(tmp_path, "folder")
    assert Counter(source.split("/")[1] for source in sources(data)) == {"train": 3, "val": 3}


def test_images_that_are_a_link_to_their_own_folder_are_refused(tmp_path: Path) -> None:
    photographs(tmp_path, 3)
    (tmp_path / "images").symlink_to(".")
    with pytest.raises(UserError, match=r"images: has no images"):
        prepared(tmp_path)
