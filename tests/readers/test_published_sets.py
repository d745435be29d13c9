"""COCO-Stuff and Cityscapes through `prepare`: tiny sets in the official layouts, and what may be missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages import prepare
from stages.core.artefacts import read_metrics
from stages.core.images import open_images, read_index
from stages.dataset.source import list_data
from stages.dataset.truth import IGNORED, Truth, read_truth
from stages.settings.errors import UserError
from tests.datasets import LIST, make_coco, noise, prepare_settings, write_image, write_params

SIDE = 32
FITTING: dict[str, Any] = {
    "pretrain.batch_size": 2,
    "pretrain.queue_size": 2,
    "train.batch_size": 2,
    "global_k": 2,
    "size_px": SIDE,
    "prepare.train_px": SIDE,
    "runtime.num_workers": 1,
    "prepare.protocol": "picie",
}
COCO = {**FITTING, "prepare.reader": "cocostuff", "prepare.taxonomy": "cocostuff27"}
CITY = {**FITTING, "prepare.reader": "cityscapes", "prepare.taxonomy": "cityscapes27"}


def make_city(root: Path) -> Path:
    """One city for each folder; two pictures each, twice as wide as high."""
    for split in ("train", "val", "test", "train_extra"):
        for number in range(2):
            stem = f"{split}ville/{split}ville_{number:06d}_000019"
            image = noise(number, 128, 64)
            write_image(root / "leftImg8bit" / split / f"{stem}_leftImg8bit.png", image)
            if split in ("train", "val"):
                ids = np.random.default_rng(number).integers(0, 34, (64, 128), np.uint8)
                write_image(root / "gtFine" / split / f"{stem}_gtFine_labelIds.png", ids)
                (root / "gtFine" / split / f"{stem}_gtFine_polygons.json").write_text("{}")
    return root


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))

    def run(settings: dict[str, Any], root: Path, **changes: Any) -> Path:
        out = tmp_path / "out"
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        params = write_params(out / "params.yaml", {**settings, "prepare.path": str(root), **dotted})
        flags = {"train-images": "images/train", "val-images": "images/val", "truth": "truth"}
        flags["metrics"] = "prepare.json"
        flags["left-out"] = "left_out.csv"
        argv = [text for flag, name in flags.items() for text in (f"--{flag}", str(out / name))]
        prepare.main([*argv, "--params", str(params)])
        return out

    return run


def truth(out: Path) -> Truth:
    return read_truth(out / "truth")


@pytest.mark.parametrize("images", ["images/{}", "{}"])
@pytest.mark.parametrize(
    "labels", ["stuffthingmaps/{}", "annotations/{}", "stuffthingmaps_trainval2017/{}", "{}"]
)
def test_every_layout_of_coco_is_found(tmp_path: Path, images: str, labels: str) -> None:
    root = make_coco(tmp_path / "coco", images, labels)
    data = list_data(prepare_settings(reader="cocostuff", taxonomy="cocostuff27", path=str(root)))
    assert [item.source for item in data.train] == [
        f"{images.format('train2017')}/{n:012d}.jpg" for n in range(3)
    ]
    assert [item.labels for item in data.val] == [
        f"{labels.format('val2017')}/{n:012d}.png" for n in range(2)
    ]
    assert [item.labels for item in data.train] == [None] * 3


def test_coco_becomes_27_classes_to_the_pixel(
    tmp_path: Path, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_coco(tmp_path / "coco")
    out = run(COCO, root)
    found = truth(out)
    assert (len(found.class_names), found.class_kinds.count("thing")) == (27, 12)
    coarse = {0: 9, 2: 11, 14: 8, 91: 17, 156: 23, 181: 24, 255: IGNORED}
    for number in range(2):
        label = Image.open(root / f"stuffthingmaps/val2017/{number:012d}.png")
        # 50 x 40 becomes 40 x 32, of which the columns 4 to 35 are kept.
        square = np.asarray(label.resize((40, 32), Image.Resampling.NEAREST))[:, 4:36]
        np.testing.assert_array_equal(found.maps[number], np.vectorize(coarse.get)(square))
        image = Image.open(root / f"images/val2017/{number:012d}.jpg")
        expected = np.asarray(image.resize((40, 32), Image.Resampling.BILINEAR))[:, 4:36]
        np.testing.assert_array_equal(open_images(out / "images" / "val")[number], expected)
    printed = capsys.readouterr().out
    assert f"train2017: the 3 images of curated/train2017/{LIST}.txt, not the published list" in printed
    assert "left out 2: not in the curated list (" in printed
    summary = read_metrics(out / "prepare.json")["prepare"]
    assert {reason: names["files"] for reason, names in summary["left_out"].items()} == {
        "not in the curated list": 2
    }
    (warning,) = summary["warnings"]  # the images that the test makes
    assert warning.startswith("validation images that are copies of a training image: 2 (images/val2017/")
    assert summary["sizes_px"]["val"]["width"] == {"min": 50, "median": 50, "max": 50}


def test_stuff_alone_is_15_classes_and_things_are_ignored(tmp_path: Path, run: Callable[..., Path]) -> None:
    root = make_coco(tmp_path / "coco")
    all_27 = np.array(truth(run(COCO, root)).maps)
    found = truth(run(COCO, root, prepare__taxonomy="cocostuff15"))
    assert (len(found.class_names), set(found.class_kinds)) == (15, {"stuff"})
    is_stuff = (all_27 >= 12) & (all_27 != IGNORED)
    np.testing.assert_array_equal(found.maps, np.where(is_stuff, all_27 - 12, IGNORED))


def test_the_stego_family_takes_the_nearest_pixel(tmp_path: Path, run: Callable[..., Path]) -> None:
    root = make_coco(tmp_path / "coco")
    found = open_images(run(COCO, root, prepare__protocol="stego") / "images/train")
    image = Image.open(root / "images/train2017/000000000001.jpg")
    expected = np.asarray(image.resize((40, 32), Image.Resampling.NEAREST))[:, 4:36]
    np.testing.assert_array_equal(found[1], expected)


def test_published_protocols_know_no_exif(tmp_path: Path, run: Callable[..., Path]) -> None:
    root = make_coco(tmp_path / "coco")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((40, 50, 3), np.uint8)
    write_image(root / "images/val2017/000000000000.jpg", picture, exif=exif)
    index = read_index(run(COCO, root) / "images/val")
    assert tuple(index.loc[0, ["width", "height"]]) == (50, 40)


def test_without_lists_all_images_are_taken_and_the_rule_is_named(
    tmp_path: Path, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(COCO, make_coco(tmp_path / "coco", listed=False))
    assert (len(read_index(out / "images" / "train")), len(read_index(out / "images" / "val"))) == (4, 3)
    assert (
        f"prepare: val2017: no list curated/val2017/{LIST}.txt, so all 3 images are used (ours); "
        "published results use only the images of that list"
    ) in capsys.readouterr().out


def test_what_is_missing_of_coco_is_listed_with_its_origin(tmp_path: Path, run: Callable[..., Path]) -> None:
    root = tmp_path / "coco"
    with pytest.raises(
        UserError, match=r"no such folder; download the data set with `python -m stages.tools.fetch"
    ):
        run(COCO, root)
    root.mkdir()
    with pytest.raises(UserError) as raised:
        run(COCO, root)
    fetch = f"or run `python -m stages.tools.fetch cocostuff --to {root}`"
    images = "http://images.cocodataset.org/zips"
    labels = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
    assert raised.value.faults == (
        f"{root}: has no .jpg files in images/train2017 or train2017; download train2017.zip (118,287 "
        f"training images of COCO 2017) from {images}/train2017.zip, {fetch}",
        f"{root}: has no .jpg files in images/val2017 or val2017; download val2017.zip (5,000 validation "
        f"images of COCO 2017) from {images}/val2017.zip, {fetch}",
        f"{root}: has no .png files in stuffthingmaps/val2017 or annotations/val2017 or "
        "stuffthingmaps_trainval2017/val2017 or val2017; download stuffthingmaps_trainval2017.zip (label "
        f"maps of COCO-Stuff, about 0.7 GB) from {labels}/stuffthingmaps_trainval2017.zip, {fetch}",
    )


def test_images_and_label_maps_that_the_list_names_must_be_there(
    tmp_path: Path, run: Callable[..., Path]
) -> None:
    root = make_coco(tmp_path / "coco")
    (root / "images/train2017/000000000002.jpg").unlink()
    (root / "stuffthingmaps/val2017/000000000001.png").unlink()
    with pytest.raises(UserError) as raised:
        run(COCO, root)
    first, second = raised.value.faults
    assert "1 of the 3 images of curated/train2017" in first
    assert "are missing (000000000002); download train2017.zip" in first
    assert "has no label map for 1 of 2 images (000000000001); download stuffthingmaps" in second


@pytest.mark.parametrize(("text", "rule"), [("", "is empty"), ("../secret\n", "has the line '../secret'")])
def test_a_list_that_is_none(tmp_path: Path, run: Callable[..., Path], text: str, rule: str) -> None:
    root = make_coco(tmp_path / "coco")
    path = root / f"curated/val2017/{LIST}.txt"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        run(COCO, root)
    assert f"{path}: {rule}, expected one image id per line" in str(raised.value)


def test_a_list_of_another_name_is_no_leave_to_take_all_images(
    tmp_path: Path, run: Callable[..., Path]
) -> None:
    root = make_coco(tmp_path / "coco")
    (root / f"curated/train2017/{LIST}.txt").unlink()
    with pytest.raises(UserError) as raised:
        run(COCO, root)
    assert (
        f"{root}/curated/train2017/{LIST}.txt: not found, but there are curated/val2017/{LIST}.txt; "
        in str(raised.value)
    )


def test_a_label_that_no_taxonomy_knows(tmp_path: Path, run: Callable[..., Path]) -> None:
    root = make_coco(tmp_path / "coco")
    write_image(root / "stuffthingmaps/val2017/000000000000.png", np.full((40, 50), 182, np.uint8))
    with pytest.raises(UserError, match="has class id 182, but cocostuff27 has label ids 0 to 181"):
        run(COCO, root)


def test_cityscapes_with_the_crop(
    tmp_path: Path, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_city(tmp_path / "city")
    out = run(CITY, root)
    assert list(read_index(out / "images" / "train")["id"]) == [
        f"{split}/{split}ville/{split}ville_{n:06d}_000019"
        for split in ("test", "train_extra")
        for n in (0, 1)
    ]
    found = truth(out)
    assert (len(found.class_names), found.class_kinds.count("thing")) == (27, 10)
    assert len(found.maps) == 4  # of train and val
    name = "trainville/trainville_000001_000019"
    label = Image.open(root / f"gtFine/train/{name}_gtFine_labelIds.png")
    middle = np.asarray(label.resize((64, 32), Image.Resampling.NEAREST))[:, 16:48].astype(int)
    np.testing.assert_array_equal(found.maps[1], np.where(middle >= 7, middle - 7, IGNORED))
    printed = capsys.readouterr().out
    assert "leftImg8bit/train_extra: 2 images, of 19,998; not comparable with published results" in printed


def test_cityscapes_without_the_crop_is_two_squares_of_each_picture(
    tmp_path: Path, run: Callable[..., Path]
) -> None:
    root = make_city(tmp_path / "city")
    out = run(CITY, root, prepare__protocol="picie_long")
    images = open_images(out / "images" / "val")
    assert len(images) == 8
    path = root / "leftImg8bit/val/valville/valville_000000_000019_leftImg8bit.png"
    whole = np.asarray(Image.open(path).resize((64, 32), Image.Resampling.BILINEAR))
    place = list(read_index(out / "images" / "val")["id"]).index("val/valville/valville_000000_000019/0")
    np.testing.assert_array_equal(np.concatenate([images[place], images[place + 1]], axis=1), whole)
    label = Image.open(root / "gtFine/val/valville/valville_000000_000019_gtFine_labelIds.png")
    ids = np.asarray(label.resize((64, 32), Image.Resampling.NEAREST)).astype(int)
    pair = np.concatenate(list(truth(out).maps[place : place + 2]), axis=1)
    np.testing.assert_array_equal(pair, np.where(ids >= 7, ids - 7, IGNORED))
    assert "central square" not in (out / "prepare.json").read_text(), "the tiles are the whole image"


def test_the_stego_family_learns_from_train_and_scores_val(tmp_path: Path, run: Callable[..., Path]) -> None:
    root = make_city(tmp_path / "city")
    out = run(CITY, root, prepare__cityscapes__train=["train"], prepare__cityscapes__val=["val"])
    sources = {split: set(read_index(out / "images" / split)["source"]) for split in ("train", "val")}
    for split, names in sources.items():
        assert len(names) == 2
        assert all(name.startswith(f"leftImg8bit/{split}/") for name in names)


def test_what_is_missing_of_cityscapes_is_listed_with_its_origin(
    tmp_path: Path, run: Callable[..., Path]
) -> None:
    root = make_city(tmp_path / "city")
    for path in (root / "leftImg8bit/train_extra").rglob("*.png"):
        path.unlink()
    (root / "gtFine/val/valville/valville_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError) as raised:
        run(CITY, root)
    assert raised.value.faults == (
        f"{root}/leftImg8bit/train_extra: has no *_leftImg8bit.png; the 19,998 images are in "
        "leftImg8bit_trainextra.zip, https://www.cityscapes-dataset.com/downloads (login)",
        f"{root}/gtFine: has no *_gtFine_labelIds.png for 1 of 4 images "
        "(val/valville/valville_000001_000019); they are in gtFine_trainvaltest.zip, "
        "https://www.cityscapes-dataset.com/downloads (login)",
    )
