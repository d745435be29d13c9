"""`python -m stages.tools.preset`: another params.yaml, fitted to the data."""

import copy
import functools
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.dataset.source import list_data
from stages.dataset.taxonomy import read_taxonomy
from stages.settings.data_size import check_data_size
from stages.settings.errors import UserError
from stages.settings.params import read
from stages.tools import answers, pin, preset
from stages.tools.answers import PUBLISHED
from stages.tools.composing import as_text, compose, lay_base, plain
from stages.tools.fitting import LEAST_IMAGES, at, fits
from stages.tools.table_file import read_base
from tests.datasets import (
    REPOSITORY,
    TAXONOMIES,
    as_yaml,
    folder_manifest,
    make_coco,
    make_folder,
    manifest_sha256,
    noise,
    prepare_settings,
    write_image,
)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the presets, and the demo as its committed params.yaml."""
    (tmp_path / "presets").mkdir()
    shutil.copytree(REPOSITORY / "presets", tmp_path / "presets", dirs_exist_ok=True)
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "presets" / "demo.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        subprocess.run(["git", *identity, *command], check=True)
    return tmp_path


def test_the_demo_preset_is_the_committed_file(repository: Path) -> None:
    assert (REPOSITORY / "params.yaml").read_bytes() == (REPOSITORY / "presets" / "demo.yaml").read_bytes()
    preset.main(["demo"])
    assert Path("params.yaml").read_bytes() == Path("presets/demo.yaml").read_bytes()


def test_the_folder_preset_is_fitted_to_a_small_data_set(repository: Path) -> None:
    make_folder(repository / "photos", num_train=40, num_val=2)
    preset.main(["folder", "--data", "photos", "--no-estimate"])
    params = read(Path("params.yaml"))
    assert params.prepare.path == "photos"
    assert params.prepare.manifest_sha256 == folder_manifest(Path("photos"))
    assert params.pixel_k == 3  # classes.txt names three
    assert params.pretrain.batch_size <= 20
    assert params.pretrain.queue_size <= 20
    assert params.pretrain.queue_size % params.pretrain.batch_size == 0
    assert params.global_k == 5
    assert "# side of the square image" in Path("params.yaml").read_text()  # comments are kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size_px:\t[", r"presets/own\.yaml: invalid YAML: "),
        ("# nothing yet", r"presets/own\.yaml: must list keys and values, such as size_px: 128"),
        (
            "pretrain: slotcon",
            r"presets/own\.yaml: pretrain: is a section: write its keys below it, such as method",
        ),
        ("size_px: {side: 64}", r"presets/own\.yaml: size_px: has no keys below it"),
        ("extends: own", r"presets/own\.yaml: extends itself \(own -> own\); extend demo or folder"),
        ("precision: bf16", r"presets/own\.yaml:\n  precision: expected "),
        ('pretrain: {batch_size: "32"}', r"presets/own\.yaml:\n  pretrain\.batch_size: "),
        ("prepare: {split: {val_fraction: 0}}", r"presets/own\.yaml:\n  prepare\.split\.val_fraction: "),
    ],
)
def test_a_preset_of_ones_own_is_checked_before_any_image_is_read(
    repository: Path, text: str, message: str
) -> None:
    (repository / "presets" / "own.yaml").write_text(f"{text}\n")
    with pytest.raises(UserError, match=f"^{message}"):
        preset.main(["own", "--data", "no such folder", "--minutes", "10"])


@pytest.mark.parametrize(("name", "num_classes"), [("cocostuff27", 27), ("cocostuff15", 15)])
def test_a_published_set_is_pinned_and_fitted(
    repository: Path, name: str, num_classes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    make_coco(repository / "coco", num_train=9)
    preset.main([name, "--data", "coco"])
    params = read(Path("params.yaml"))
    assert (params.pixel_k, params.prepare.path, params.pretrain.batch_size) == (num_classes, "coco", 4)
    assert params.prepare.manifest_sha256 == manifest_sha256(list_data(params.prepare))
    assert "train2017: the 8 images of curated/train2017/" in capsys.readouterr().out


def test_what_a_published_set_lacks_is_said(repository: Path) -> None:
    (repository / "city").mkdir()
    with pytest.raises(UserError) as raised:
        preset.main(["cityscapes27_stego", "--data", "city"])
    assert [fault.split(":")[0] for fault in raised.value.faults] == [
        "city/leftImg8bit/train",
        "city/leftImg8bit/val",
    ]


@pytest.mark.parametrize(
    ("name", "train_images"),
    [
        ("cocostuff27", 49_629),
        ("cocostuff27_imagenet", 49_629),
        ("cocostuff15", 49_629),
        ("cityscapes27", 21_523),
        ("cityscapes27_stego", 2_975),
        ("cocostuff27_picie", 49_629),
        ("cityscapes27_picie", 21_523),
    ],
)
def test_presets_of_published_sets_fit_them_as_they_are(name: str, train_images: int, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(as_text(compose(name, REPOSITORY / "presets")), encoding="utf-8")
    check_data_size(path, train_images)
    params = read(path)
    assert params.pretrain.queue_size <= train_images // 2
    assert params.pixel_k == len(read_taxonomy(TAXONOMIES[params.prepare.taxonomy]).class_names)


# Every number of PiCIE's official code that has a key here: its network and augmentation, its clustering in
# training, its loss, its optimizer, and its final clustering and prediction.
OFFICIAL = {
    "size_px": 320,
    "pixel_k": 27,
    "precision": "float32",
    "backbone.arch": "resnet18",
    "backbone.width": 64,
    "backbone.stem_stride": 4,
    "prepare.protocol": "picie",
    "prepare.train_px": 640,
    "pretrain.method": "none",
    "train.epochs": 10,
    "train.batch_size": 128,
    "train.weight_decay": 0.0,
    "train.freeze": "none",
    "train.fpn_dim": 128,
    "train.feature_stride": 4,
    "train.crop_side": [0.5, 1.0],
    "train.flip_probability": 0.5,
    "train.crop_first": False,
    "train.photometric.jitter_probability": 0.8,
    "train.photometric.jitter_together": False,
    "train.photometric.brightness": 0.3,
    "train.photometric.contrast": 0.3,
    "train.photometric.saturation": 0.3,
    "train.photometric.hue": 0.1,
    "train.photometric.gray_probability": 0.0,
    "train.photometric.blur_probability": 0.5,
    "train.photometric.blur_sigma_px": [0.0, 1.8],
    "train.photometric.blur_reference_px": 0,
    "train.clustering.kmeans": "minibatch",
    "train.clustering.init_batches": 20,
    "train.clustering.batches_per_update": 2,
    "train.clustering.iterations": 20,
    "train.clustering.restarts": 1,
    "train.clustering.unit_centroids": False,
    "train.clustering.assign": "euclidean",
    "train.clustering.assign_batch_norm": "running",
    "train.pixel_loss.metric": "dot",
    "train.pixel_loss.temperature": 1.0,
    "train.pixel_loss.balance": "frequency",
    "train.pixel_loss.cross_weight": 0.5,
    "train.image_loss.weight": 0.0,
    "train.context.similarity": "none",
    "cluster.centroids": "fresh",
    "cluster.kmeans": "minibatch",
    "cluster.batch_size": 256,
    "cluster.init_batches": 20,
    "cluster.iterations": 20,
    "cluster.restarts": 1,
    "cluster.unit_centroids": False,
    "cluster.batch_norm": "batch",
    "predict.batch_size": 128,
    "predict.mirror": False,
    "predict.unit_features": True,
}
COCO = {"train.lr": 1e-4, "train.color_views": "both", "prepare.taxonomy": "cocostuff27"}
CITYSCAPES = {
    "train.lr": 1e-3,
    "train.color_views": "second",
    "prepare.taxonomy": "cityscapes27",
    "prepare.cityscapes.train": ["test", "train_extra"],
    "prepare.cityscapes.val": ["val", "train"],
}


@pytest.mark.parametrize(("name", "own"), [("cocostuff27_picie", COCO), ("cityscapes27_picie", CITYSCAPES)])
def test_the_presets_of_picie_have_the_values_of_its_official_run(name: str, own: dict[str, object]) -> None:
    assert _values(name, {**OFFICIAL, **own}) == {**OFFICIAL, **own}


STEGO = {
    "prepare.protocol": "stego",
    "prepare.cityscapes.train": ["train"],
    "prepare.cityscapes.val": ["val"],
    "predict.mirror": True,
    "predict.unit_features": False,
    "refine.temperature": 0.5,  # twice the cosine
    "refine.iterations": 10,
    "refine.smoothness_weight": 3.0,
    "refine.smoothness_px": 1.0,
    "refine.appearance_weight": 4.0,
    "refine.appearance_px": 67.0,
    "refine.appearance_color": 3.0,
}


def test_the_preset_of_stego_evaluates_as_stego() -> None:
    assert _values("cityscapes27_stego", STEGO) == STEGO


SWAV = {
    "pretrain.method": "swav",
    "pretrain.batch_size": 256,
    "pretrain.image_px": 224,
    "pretrain.optimizer": "lars",
    "pretrain.momentum": 0.9,
    "pretrain.lr": 0.6,
    "pretrain.weight_decay": 1e-6,
    "pretrain.warmup_epochs": 0.0,
    "pretrain.projection_dim": 128,
    "pretrain.head_batch_norm": True,
    "pretrain.bn_splits": 1,
    "pretrain.swav.num_prototypes": 3000,
    "pretrain.swav.temperature": 0.1,
    "pretrain.swav.epsilon": 0.05,
    "pretrain.swav.sinkhorn_iterations": 3,
    "pretrain.swav.crop_area": [0.14, 1.0],
    "pretrain.swav.local_crops": 6,
    "pretrain.swav.local_px": 96,
    "pretrain.swav.local_area": [0.05, 0.14],
    "pretrain.swav.queue_size": 3840,
    "pretrain.swav.queue_from_epoch": 15,
    "pretrain.photometric.jitter_probability": 0.8,
    "pretrain.photometric.jitter_together": True,
    "pretrain.photometric.brightness": 0.8,
    "pretrain.photometric.contrast": 0.8,
    "pretrain.photometric.saturation": 0.8,
    "pretrain.photometric.hue": 0.2,
    "pretrain.photometric.gray_probability": 0.2,
    "pretrain.photometric.blur_probability": 0.5,
    "pretrain.photometric.blur_sigma_px": [0.1, 2.0],
    "pretrain.photometric.blur_reference_px": 0,
}


def test_the_preset_of_swav_is_its_official_run_with_batches_of_256() -> None:
    """scripts/swav_400ep_bs256_pretrain.sh and src/multicropdataset.py of its repository."""
    assert _values("cocostuff27_swav", SWAV) == SWAV


def test_the_presets_of_the_paper_train_as_it_says() -> None:
    """For 10 epochs with a learning rate of 1e-3, no weight decay and batches of 128 (A.2)."""
    expected = {"train.epochs": 10, "train.lr": 1e-3, "train.weight_decay": 0.0, "train.batch_size": 128}
    for name in ("cocostuff27", "cocostuff15", "cityscapes27"):
        assert _values(name, expected) == expected


def test_published_models_see_views_of_the_size_that_they_were_evaluated_at() -> None:
    """Resized to 256 px, center crop of 224 (A.1)."""
    expected = {"embed.image_px": 224, "embed.centre_ratio": 224 / 256}
    for name in ("cocostuff27", "cocostuff15", "cityscapes27"):
        assert _values(name, expected) == expected


def _values(name: str, keys: Iterable[str]) -> dict[str, object]:
    """The values of a preset under dotted keys."""
    content = plain(compose(name, REPOSITORY / "presets"))
    return {key: _at(content, key) for key in keys}


def _at(content: Any, key: str) -> Any:
    return functools.reduce(lambda section, part: section[part], key.split("."), content)


# The start of Tables 2, 4 and 5, and the weight of guidance.
OWN_CHOICES = {
    "cocostuff27_imagenet": {
        "pretrain.init": "moco_v2_800ep_pretrain.pth.tar",
        "pretrain.method": "mocov2",
        "pretrain.epochs": 100,
        "pretrain.lr": 0.03,
        "train.image_loss.weight": 1.0,
    },
    "cityscapes27": {"train.image_loss.weight": 0.1},
    "cityscapes27_stego": {"train.image_loss.weight": 0.1},
    "cityscapes27_picie": {"train.image_loss.weight": 0.0},
}


@pytest.mark.parametrize("name", OWN_CHOICES)
def test_where_the_paper_is_silent_presets_have_what_the_docs_say(name: str) -> None:
    assert _values(name, OWN_CHOICES[name]) == OWN_CHOICES[name]


def test_on_the_images_of_stego_training_has_as_many_steps_as_picie_on_its_own() -> None:
    def steps(name: str, train_images: int) -> int:
        train = plain(compose(name, REPOSITORY / "presets"))["train"]
        return train["epochs"] * (train_images // train["batch_size"])

    assert steps("cityscapes27_stego", 2_975) == pytest.approx(steps("cityscapes27_picie", 21_523), rel=0.01)


def test_both_bases_set_the_same_keys_to_other_values() -> None:
    picie, ours = (read_base(REPOSITORY / "presets/bases" / f"{name}.yaml") for name in ("picie", "ours"))
    assert set(picie) == set(ours)
    assert not [key for key in picie if picie[key] == ours[key]]
    assert not [key for key in picie if "context" in key or "image_loss" in key], "a part is no base"


@pytest.mark.parametrize("name", ["picie", "ours"])
def test_a_base_lies_over_a_preset_and_every_value_shows(repository: Path, name: str) -> None:
    preset.main(["demo", "--base", name])
    written = plain(compose("demo"))
    found = YAML(typ="safe").load(Path("params.yaml").read_text())
    base = read_base(Path(f"presets/bases/{name}.yaml"))
    assert {key: _at(found, key) for key in base} == base
    for key, value in base.items():
        *sections, last = key.split(".")
        _at(written, ".".join(sections))[last] = value
    assert found == written, "the base changed what it does not list"


@pytest.mark.parametrize("by", ["fraction", "folder"])
def test_too_few_photographs_are_said_at_once(repository: Path, by: str) -> None:
    names = ("0", "1") if by == "fraction" else ("images/train/0", "images/val/1")
    for number, name in enumerate(names):
        write_image(repository / f"photos/{name}.png", noise(number, 8, 8))
    before = Path("params.yaml").read_bytes()
    with pytest.raises(UserError) as raised:
        preset.main(["folder", "--data", "photos", "--no-estimate"])
    assert str(raised.value) == (
        "photos: has 1 training image, but a batch of training has at least 2; add images"
        + (", of which about 20% are for validation" if by == "fraction" else "")
    )
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "name", ["folder", "cocostuff27", "cityscapes27", "cocostuff27_slotcon", "cocostuff27_swav"]
)
@pytest.mark.parametrize("base", [None, "picie", "ours"])
def test_from_the_fewest_images_on_the_settings_fit(tmp_path: Path, name: str, base: str | None) -> None:
    path, composed = tmp_path / "params.yaml", compose(name, REPOSITORY / "presets")
    if base is not None:
        lay_base(composed, base, REPOSITORY / "presets")
    for num_images in (*range(LEAST_IMAGES - 1, 10), 17, 100):
        params = copy.deepcopy(plain(composed))
        for fit in fits(params, num_images):
            at(params, fit.key[:-1])[fit.key[-1]] = fit.value
        path.write_text(as_yaml(params), encoding="utf-8")
        if num_images < LEAST_IMAGES:
            with pytest.raises(UserError, match=r"batch_size: 2 is more than the 1 training images"):
                check_data_size(path, num_images)
        else:
            check_data_size(path, num_images)


@pytest.mark.parametrize(("lists", "by"), [(True, "lists"), (False, "fraction")])
def test_the_split_follows_what_is_there(
    repository: Path, capsys: pytest.CaptureFixture[str], lists: bool, by: str
) -> None:
    root = repository / "photos"
    for number in range(4):
        write_image(root / f"images/{number}.png", noise(number, 8, 8))
    if lists:
        (root / "train.txt").write_text("0\n1\n2\n")
        (root / "val.txt").write_text("3\n")
    preset.main(["folder", "--data", "photos", "--no-estimate"])
    assert read(Path("params.yaml")).prepare.split.by == by
    assert f"\n  prepare.split.by: folder -> {by}, " in f"\n{capsys.readouterr().out}"


FEW = """\
extends: folder
preset: few
size_px: 32
backbone: {width: 8}
prepare: {train_px: 32}
pretrain: {epochs: 2, image_px: 32}
embed: {image_px: 32}
train:
  epochs: 2
  fpn_dim: 8
  image_loss: {view_px: 32}
  clustering: {sample_pixels: 500, iterations: 2}
"""


@pytest.mark.parametrize("count", [3, 4])
def test_where_all_that_is_left_out_will_be_named_is_said_if_an_answer_has_no_room(
    tmp_path: Path, count: int
) -> None:
    write_image(tmp_path / "a.png", noise(0, 8, 8))
    write_image(tmp_path / "b.png", noise(1, 8, 8))
    for number in range(count):
        (tmp_path / f"{number}.gif").write_bytes(b"x")
    data = list_data(prepare_settings(reader="folder", path=str(tmp_path), split__by="fraction"))
    said = "\n".join(answers.found(data))
    assert ("data/left_out.csv will name all of them" in said) == (count > 3)


def test_a_flat_folder_is_enough_and_the_answer_says_what_to_expect(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("presets/few.yaml").write_text(FEW)
    for number in range(40):
        write_image(repository / f"photos/trip {number % 3}/{number}.png", noise(number, 40, 30))
    (repository / "photos/film.psd").write_bytes(b"x")
    preset.main(["few", "--data", "photos"])
    params, said = read(Path("params.yaml")), capsys.readouterr().out
    data = list_data(params.prepare)
    assert len(data.train) + len(data.val) == 40
    assert params.prepare.split.by == "fraction"
    assert f"photos: {len(data.train)} training images, {len(data.val)} validation images" in said
    assert "left out 1: picture of a format that is not read; convert it to PNG or JPEG (film.psd)" in said
    assert "prepare.split: each image by its content, about 20% for validation" in said
    assert (
        f"pixel_k: {params.pixel_k}, as the preset has it: without labels nothing says how many classes"
        in said
    )
    (line,) = [line for line in said.splitlines() if line.startswith("`dvc repro` will take ")]
    spans = re.match(r"`dvc repro` will take (.+) to (.+) here, on a", line)
    assert spans is not None
    seconds = [_seconds(span) for span in spans.groups()]
    assert 0 < seconds[0] <= seconds[1] < 3600
    assert re.search(r"at best prepare .*, starting the stages .*, pretrain .*, train .*, others ", said)


def test_the_checkpoint_that_is_proposed_for_few_images_fits_the_preset(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(repository / "photos", num_train=40, num_val=2)
    preset.main(["folder", "--data", "photos", "--no-estimate"])
    assert "method: none\n    init: path/to/dino_resnet50_pretrain.pth\n" in capsys.readouterr().out
    text = Path("params.yaml").read_text().replace("arch: resnet18", "arch: resnet50")
    text = text.replace("method: mocov2", "method: none").replace("init: ''", "init: path/to/dino.pth", 1)
    Path("params.yaml").write_text(text)
    params = read(Path("params.yaml"))
    assert (params.backbone.width, params.backbone.stem_stride, params.pretrain.method) == (64, 4, "none")
    assert params.pretrain.init == "path/to/dino.pth"


def _seconds(span: str) -> int:
    """Of a span such as 1 min 41 s."""
    parts = re.findall(r"(\d+) (s|min|h)\b", span)
    assert " ".join(" ".join(part) for part in parts) == span
    return sum(int(number) * {"s": 1, "min": 60, "h": 3600}[unit] for number, unit in parts)


def test_a_start_that_is_missing_is_said_with_its_address(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_coco(repository / "coco", num_train=9)
    name = "moco_v2_800ep_pretrain.pth.tar"
    preset.main(["cocostuff27_imagenet", "--data", "coco"])
    assert (
        f"\n  pretrain.init: {name} does not exist; before `dvc repro`, which needs it: "
        f"curl -Lo {name} https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/{name}\n"
    ) in capsys.readouterr().out
    Path(name).touch()
    preset.main(["cocostuff27_imagenet", "--data", "coco"])
    assert "pretrain.init" not in capsys.readouterr().out


def test_a_start_of_ones_own_that_is_missing_is_said(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("presets/mine.yaml").write_text("preset: mine\npretrain: {init: models/mine.pth}\n")
    preset.main(["mine"])
    assert (
        "pretrain.init: models/mine.pth does not exist; before `dvc repro`, which needs it: put the file "
        "there, or set pretrain.init\n"
    ) in capsys.readouterr().out


def test_every_start_of_a_preset_has_an_address_in_the_docs() -> None:
    presets = REPOSITORY / "presets"
    starts = {plain(compose(path.stem, presets))["pretrain"]["init"] for path in presets.glob("*.yaml")}
    assert starts - {""} <= set(PUBLISHED)
    text = (REPOSITORY / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert [name for name, address in PUBLISHED.items() if f"| `{name}` | <{address}> |" not in text] == []


def test_what_a_preset_has_written_is_no_edit(repository: Path) -> None:
    make_folder(repository / "photos", num_train=40, num_val=2)
    preset.main(["folder", "--data", "photos", "--no-estimate"])
    preset.main(["demo"])
    preset.main(["folder", "--data", "photos", "--no-estimate"])
    write_image(repository / "photos/images/train/new.png", noise(5, 20, 20))
    pin.main([])
    preset.main(["folder", "--data", "photos", "--no-estimate"])
    text = Path("params.yaml").read_text().replace("seed: 0 ", "seed: 7 ")
    Path("params.yaml").write_text(text)
    write_image(repository / "photos/images/train/newer.png", noise(6, 20, 20))
    pin.main([])  # keeps the edit, which stays one
    with pytest.raises(UserError, match="has uncommitted edits"):
        preset.main(["demo"])
    assert read(Path("params.yaml")).seed == 7


@pytest.mark.parametrize(
    ("has_names", "said"),
    [(False, ", 0 named classes\n"), (True, ", classes.txt not used: no label maps in labels/val\n")],
)
def test_without_labels_the_number_of_classes_is_the_users(
    repository: Path, capsys: pytest.CaptureFixture[str], has_names: bool, said: str
) -> None:
    make_folder(repository / "photos", labels=False)
    if has_names:
        (repository / "photos/classes.txt").write_text("sky\nroad\n")
    preset.main(["folder", "--data", "photos", "--no-estimate"])
    assert read(Path("params.yaml")).pixel_k == compose("folder")["pixel_k"]
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("data", ["data", "data/images/mine", "./metrics", "models/../data/truth", "link"])
def test_data_where_the_pipeline_writes_is_refused(repository: Path, data: str) -> None:
    """DVC empties data/ before `prepare` runs, so the photographs would be lost."""
    photos = make_folder(repository / "data/images/mine", num_train=2, num_val=1)
    Path("link").symlink_to("data/images/mine")
    with pytest.raises(UserError) as raised:
        preset.main(["folder", "--data", data, "--no-estimate"])
    assert "is where the pipeline writes its results" in str(raised.value)
    assert len(list(photos.rglob("*.png"))) > 2
    assert Path("params.yaml").read_bytes() == Path("presets/demo.yaml").read_bytes()


@pytest.mark.parametrize("data", [".", ".."])
def test_data_that_contains_the_repository_is_refused(repository: Path, data: str) -> None:
    make_folder(repository / "photos", num_train=2, num_val=1)
    with pytest.raises(UserError, match=r"contains the folder .*data/images, where the pipeline writes"):
        preset.main(["folder", "--data", data, "--no-estimate"])


def test_data_beside_the_results_is_taken(repository: Path) -> None:
    make_folder(repository / "data/photos", num_train=40, num_val=2)
    preset.main(["folder", "--data", "data/photos", "--no-estimate"])
    assert read(Path("params.yaml")).prepare.path == "data/photos"


def test_a_file_outside_of_the_repository_is_not_overwritten_unseen(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "params.yaml"
    other.write_text("mine")
    with pytest.raises(UserError) as raised:
        preset.main(["demo", "--params", str(other)])
    assert "git does not say whether it has edits" in str(raised.value)
    assert other.read_text() == "mine"


def test_settings_written_elsewhere_leave_what_belongs_to_the_active_ones(repository: Path) -> None:
    make_folder(repository / "photos", num_train=40, num_val=2)
    make_folder(repository / "others", num_train=50, num_val=2)
    preset.main(["folder", "--data", "photos", "--no-estimate"])
    before = {path: path.read_bytes() for path in Path(".state").iterdir() if path.is_file()}
    assert len(before) == 2
    preset.main(["folder", "--data", "others", "--params", "elsewhere.yaml", "--no-estimate", "--force"])
    assert read(Path("elsewhere.yaml")).prepare.path == "others"
    assert {path: path.read_bytes() for path in before} == before


def test_a_file_that_git_ignores_is_kept(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(".gitignore").write_text("mine.yaml\n")
    Path("mine.yaml").write_text("seed: 7\n")
    with pytest.raises(UserError, match=r"^mine\.yaml: has uncommitted edits, .* \(git commit mine\.yaml\)"):
        preset.main(["demo", "--params", "mine.yaml"])
    assert Path("mine.yaml").read_text() == "seed: 7\n"
    preset.main(["demo", "--params", "mine.yaml", "--force"])
    assert capsys.readouterr().out.endswith(
        "mine.yaml: preset demo is written; `dvc repro` reads params.yaml\n"
    )


def test_edits_that_are_not_committed_are_kept(repository: Path) -> None:
    edited = Path("params.yaml").read_text().replace("seed: 0 ", "seed: 7 ")
    Path("params.yaml").write_text(edited)
    with pytest.raises(UserError) as raised:
        preset.main(["demo"])
    assert str(raised.value) == (
        "params.yaml: has uncommitted edits, which a preset would overwrite; "
        "commit them (git commit params.yaml), or pass FORCE=1 (--force)"
    )
    assert Path("params.yaml").read_text() == edited
    preset.main(["demo", "--force"])
    assert read(Path("params.yaml")).seed == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["cocoo"],
            "presets/cocoo.yaml: not found; available: cityscapes27, cityscapes27_picie, cityscapes27_stego, "
            "cocostuff15, cocostuff27, cocostuff27_imagenet, cocostuff27_picie, cocostuff27_slotcon, "
            "cocostuff27_swav, demo, folder, folder_slotcon",
        ),
        (["demo", "--base", "piecie"], "presets/bases/piecie.yaml: not found; available: ours, picie"),
        (["folder"], "preset folder reads images from a folder; set it with DATA=... (--data)"),
        (["demo", "--data", "x"], "preset demo generates its own data; remove DATA (--data)"),
    ],
)
def test_what_cannot_be_is_said(repository: Path, argv: list[str], message: str) -> None:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(UserError) as raised:
        preset.main(argv)
    assert str(raised.value) == message
    assert Path("params.yaml").read_bytes() == before


def test_minutes_cannot_be_chosen_without_measuring(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        preset.main(["folder", "--data", "photos", "--minutes", "5", "--no-estimate"])
    assert "argument --no-estimate: not allowed with argument --minutes" in capsys.readouterr().err


OWN = """\
extends: folder
preset: mine
seed: 3            # a seed of my own
report:
  single_file: true
"""


def test_a_preset_of_ones_own_extends_another(repository: Path) -> None:
    Path("presets/mine.yaml").write_text(OWN)
    make_folder(repository / "photos", num_train=40, num_val=2)
    preset.main(["mine", "--data", "photos", "--no-estimate"])
    params, lines = read(Path("params.yaml")), Path("params.yaml").read_text().splitlines()
    assert (params.preset, params.seed, params.report.single_file) == ("mine", 3, True)
    assert params.size_px == compose("folder")["size_px"]
    assert any(line.startswith("seed: 3 ") and line.endswith(" # a seed of my own") for line in lines)
    # The blank line between sections is that of demo.yaml.
    (place,) = (number for number, line in enumerate(lines) if line.startswith("  single_file: true "))
    assert (lines[place + 1], lines[place + 2].split(":")[0]) == ("", "runtime")


def test_a_key_that_does_not_exist_is_named(repository: Path) -> None:
    Path("presets/mine.yaml").write_text("train:\n  epocs: 3\n")
    with pytest.raises(UserError) as raised:
        preset.main(["mine"])
    assert str(raised.value) == "presets/mine.yaml: train.epocs: unknown key; did you mean 'epochs'?"


def test_a_tilde_is_the_home_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(repository))
    make_folder(repository / "photos", num_train=40, num_val=2)
    preset.main(["folder", "--data", "~/photos", "--no-estimate"])
    assert read(Path("params.yaml")).prepare.path == str(repository / "photos")


def test_a_folder_that_is_not_there_is_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as raised:
        preset.main(["folder", "--data", "nowhere", "--no-estimate"])
    assert str(raised.value) == "nowhere: no such folder; set DATA=... (--data) to the folder of your images"
    assert not capsys.readouterr().out  # nothing was chosen for it
