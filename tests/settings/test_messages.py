"""Every kind of message about params.yaml, by its full text; and params.yaml read by us as DVC reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import load_yaml
from ruamel.yaml import YAML

from stages.settings.errors import UserError
from stages.settings.params import load, read
from stages.settings.schema import Params
from stages.tools.composing import as_text, compose, lay_base, plain
from tests.datasets import REPOSITORY, write_params

PRESETS = {path.stem: path for path in sorted((REPOSITORY / "presets").glob("*.yaml"))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_params(tmp_path / "params.yaml")


def _fault(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read(path)
    return str(raised.value)


def _edit(path: Path, edit: Callable[[Any], object]) -> None:
    yaml = YAML()
    content = yaml.load(path.read_text(encoding="utf-8"))
    edit(content)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


HASH = "must be the 64 hexadecimal digits of a SHA-256 in lower case, or ''"
# One row for each rule: dotted key, value, what is said of it after the key.
VALUES = [
    (
        "pretrain.method",
        "moco",
        "expected one of 'mocov2', 'swav', 'densecl', 'slotcon', 'none' or 'supervised', got 'moco'",
    ),
    ("precision", "float16", "expected one of 'float32', 'tf32' or 'bfloat16', got 'float16'"),
    ("backbone.stem_stride", 3, "expected one of 1, 2 or 4, got 3"),
    ("backbone.stem_stride", "2", "expected one of 1, 2 or 4, got '2'"),
    ("backbone.stem_stride", True, "expected int, got True"),
    ("backbone.patch_px", 32, "expected one of 8, 14 or 16, got 32"),
    ("backbone.patch_px", True, "expected int, got True"),
    ("backbone.registers", -1, "must be >= 0, got -1"),
    (
        "label.centres",
        "swav",
        "expected one of 'auto', 'kmeans', 'prototypes', 'classifier' or 'projector', got 'swav'",
    ),
    ("pretrain.init_sha256", "f" * 63, f"{HASH}, got '{'f' * 63}'"),
    ("pretrain.init_sha256", "F" * 64, f"{HASH}, got '{'F' * 64}'"),
    ("seed", True, "expected int, got True"),
    ("seed", 1.5, "expected int, got 1.5"),
    ("seed", "3", "expected int, got '3'"),
    ("pretrain.queue_size", True, "expected int, got True"),
    ("pretrain.lr", True, "expected float, got True"),
    ("pretrain.lr", "fast", "expected float, got 'fast'"),
    ("pretrain.lr", None, "expected float, got None"),
    ("pretrain.symmetric", 1, "expected bool, got 1"),
    ("pretrain.symmetric", "yes", "expected bool, got 'yes'"),
    ("preset", 3, "expected string, got 3"),
    ("prepare.cityscapes.val", "val", "expected list, got 'val'"),
    ("label", [1], "expected section, got [1]"),
    ("embed", None, "expected section, got None"),
    ("seed", -1, "must be >= 0, got -1"),
    ("size_px", 8, "must be >= 16, got 8"),
    ("global_k", 1, "must be >= 2, got 1"),
    ("pixel_k", 256, "must be <= 255, got 256"),
    ("pretrain.lr", 0, "must be > 0.0, got 0"),
    ("pretrain.lr", -1.0, "must be > 0.0, got -1.0"),
    ("select_ratio", 1.5, "must be <= 1.0, got 1.5"),
    ("crop_ratio", 1.0, "must be < 1.0, got 1.0"),
    ("pretrain.photometric.hue", 0.6, "must be <= 0.5, got 0.6"),
    ("train.image_loss.weight", -0.1, "must be auto or a number >= 0, got -0.1"),
    ("train.image_loss.weight", "automatic", "must be auto or a number >= 0, got 'automatic'"),
    ("train.image_loss.weight", True, "must be auto or a number >= 0, got True"),
    ("device", "gpu", "must be auto, cpu, cuda or cuda:<index>, got 'gpu'"),
    ("device", "cuda:", "must be auto, cpu, cuda or cuda:<index>, got 'cuda:'"),
    ("device", 0, "must be auto, cpu, cuda or cuda:<index>, got 0"),
    ("prepare.split.val_fraction", 1.0, "must be < 1.0, got 1.0"),
    ("prepare.split.by", "chance", "expected one of 'folder', 'lists' or 'fraction', got 'chance'"),
    (
        "prepare.cocostuff.list",
        "../x",
        "must be the name of a list: letters, digits, _ and -, got '../x'",
    ),
    ("prepare.manifest_sha256", "abc", f"{HASH}, got 'abc'"),
    ("train.crop_side", 0.5, "must be [low, high], each > 0 and <= 1, got 0.5"),
    ("train.crop_side", [0.5], "must be [low, high], each > 0 and <= 1, got [0.5]"),
    ("train.crop_side", [0.5, 2.0], "must be [low, high], each > 0 and <= 1, got [0.5, 2.0]"),
    ("train.crop_side", [1.0, 0.5], "must be [low, high], each > 0 and <= 1, got [1.0, 0.5]"),
    (
        "train.photometric.blur_sigma_px",
        [0.1, 1.0, 2.0],
        "must be [low, high], each >= 0, got [0.1, 1.0, 2.0]",
    ),
    ("train.context.kernel_bounds", [0, 2.0], "must be [low, high], each > 0, got [0, 2.0]"),
    (
        "pretrain.slotcon.blur_probability",
        [0.5],
        "must be [first view, second view], each >= 0 and <= 1, got [0.5]",
    ),
]


@pytest.mark.parametrize(
    ("key", "value", "expected"), VALUES, ids=[f"{key}={value}" for key, value, _ in VALUES]
)
def test_a_value_that_breaks_a_rule(tmp_path: Path, key: str, value: object, expected: str) -> None:
    path = write_params(tmp_path / "params.yaml", {key: value})
    assert _fault(path) == f"{path}:\n  {key}: {expected}"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["train.lr", "pretrain.photometric.contrast"])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, key: str, value: str) -> None:
    path = write_params(tmp_path / "params.yaml", {key: float(value)})
    assert _fault(path).startswith(f"{path}:\n  {key}: ")
    assert _fault(path).endswith(f", got {value}")


def test_an_item_of_a_list_is_named_by_its_place(tmp_path: Path) -> None:
    path = write_params(tmp_path / "params.yaml", {"prepare.cityscapes.val": ["val", "test"]})
    assert _fault(path) == (
        f"{path}:\n  prepare.cityscapes.val.1: expected one of 'train' or 'val', got 'test'"
    )


@pytest.mark.parametrize(
    ("section", "written", "meant"),
    [
        ("pretrain", "tempurature", "temperature"),
        ("", "global_K", "global_k"),
        ("train.context", "strid", "stride"),
    ],
)
def test_an_unknown_key_with_what_was_meant(path: Path, section: str, written: str, meant: str) -> None:
    def edit(content: Any) -> None:
        for part in filter(None, section.split(".")):
            content = content[part]
        content[written] = content[meant]

    _edit(path, edit)
    key = f"{section}.{written}" if section else written
    assert _fault(path) == f"{path}:\n  {key}: unknown key; did you mean {meant!r}?"


def test_an_unknown_key_that_is_like_no_other(path: Path) -> None:
    _edit(path, lambda content: content["embed"].update(zzz=1))
    assert _fault(path) == f"{path}:\n  embed.zzz: unknown key; known: batch_size, image_px, centre_ratio"


@pytest.mark.parametrize("key", ["seed", "train", "pretrain.lr", "train.pixel_loss.balance"])
def test_a_missing_key(path: Path, key: str) -> None:
    def edit(content: Any) -> None:
        *sections, name = key.split(".")
        for part in sections:
            content = content[part]
        del content[name]

    _edit(path, edit)
    assert _fault(path) == f"{path}:\n  {key}: missing; presets/demo.yaml has every key"


def test_a_key_that_is_no_text(path: Path) -> None:
    _edit(path, lambda content: content.update({3: 4}))
    assert _fault(path) == f"{path}:\n  3: keys should be strings, got 3"


# Rules that hold two or more keys against each other.
CROSS = [
    (
        {"runtime.launcher": 'torchrun "x'},
        "runtime.launcher: 'torchrun \"x' is no command (No closing quotation); close the quotation",
    ),
    (
        {"runtime.launcher": " "},
        "runtime.launcher: is blank; set it to a command such as torchrun, or to ''",
    ),
    (
        {"runtime.cuda_graph": True, "runtime.nproc": 2},
        "runtime.cuda_graph: true needs one process for each stage; set it to auto, or set nproc: 1 and "
        "launcher: ''",
    ),
    (
        {"prepare.reader": "folder"},
        "prepare.path: is empty, but reader: folder reads from it; set it to the folder of images/",
    ),
    (
        {"pretrain.method": "supervised"},
        "pretrain.init: is empty, but method: supervised loads weights and classes from a checkpoint; "
        "set it to a checkpoint with a classifier",
    ),
    (
        {
            "train.pixel_loss.metric": "euclidean",
            "train.clustering.unit_centroids": False,
            "train.clustering.assign": "euclidean",
        },
        "cluster.unit_centroids: must be false with train.pixel_loss.metric: euclidean, where features keep "
        "their length",
    ),
    (
        {"train.clustering.num_clusters": 1},
        "train.clustering.num_clusters: 1 cluster separates nothing; set at least 2, or 0 for pixel_k",
    ),
    (
        {"train.clustering.num_clusters": 27, "cluster.centroids": "first_view", "pixel_k": 9},
        "cluster.centroids: first_view takes the 27 clusters of train.clustering.num_clusters, but pixel_k "
        "is 9; set both to one value, or cluster.centroids: fresh",
    ),
    (
        {"train.context.appearance_weight": 2.0, "train.context.proximity_weight": 2.0},
        "train.context.appearance_weight: is 2.0 like proximity_weight, a bound of kernel_bounds, so their "
        "ratio could not be learned; choose weights between the bounds",
    ),
    (
        {"train.context.kernel_bounds": [0.3, 2.0], "train.context.color_bandwidth": 0.3},
        "train.context.position_bandwidth: must lie within kernel_bounds [0.3, 2.0], got 0.2",
    ),
    (
        {"backbone.arch": "vit_small", "backbone.patch_px": 14, "train.feature_stride": 4},
        "train.feature_stride: must divide backbone.patch_px 14, got 4",
    ),
    (
        {"prepare.reader": "cityscapes", "prepare.taxonomy": "cityscapes27"},
        "prepare.path: is empty, but reader: cityscapes reads from it; set it to the folder of the data set",
    ),
    (
        {"prepare.reader": "cocostuff", "prepare.path": "coco"},
        "prepare.taxonomy: own does not fit reader: cocostuff; set it to cocostuff27 or another "
        "cocostuff taxonomy",
    ),
    (
        {"prepare.taxonomy": "cocostuff27"},
        "prepare.taxonomy: cocostuff27 does not fit reader: demo; set it to own",
    ),
    (
        {"prepare.protocol": "picie_long"},
        "prepare.protocol: picie_long requires reader: cityscapes; set it to picie",
    ),
    (
        {"prepare.cityscapes.val": ["val", "train"], "prepare.cityscapes.train": ["train"]},
        "prepare.cityscapes.val: train occurs more than once in train and val; list it only once",
    ),
    (
        {"pretrain.queue_size": 100, "pretrain.batch_size": 64},
        "pretrain.queue_size: 100 is not a multiple of batch_size 64; the queue stores whole batches, "
        "so set it to a multiple",
    ),
    (
        {"pretrain.method": "swav", "pretrain.swav.queue_size": 100},
        "pretrain.swav.queue_size: 100 is not a multiple of batch_size 32; the queue stores whole batches, "
        "so set it to a multiple, or to 0 for no queue",
    ),
    (
        {"cluster.batch_norm": "batch", "cluster.batch_size": 1},
        "cluster.batch_size: must be 2 or more with batch_norm: batch, got 1",
    ),
    (
        {"cluster.batch_norm": "batch", "cluster.sample_images": 1},
        "cluster.sample_images: must be 2 or more with batch_norm: batch, got 1",
    ),
    (
        {"pretrain.bn_splits": 3, "pretrain.batch_size": 64},
        "pretrain.bn_splits: 3 does not divide batch_size 64 into groups of at least two images",
    ),
    (
        {"pretrain.bn_splits": 64, "pretrain.batch_size": 64},
        "pretrain.bn_splits: 64 does not divide batch_size 64 into groups of at least two images",
    ),
    (
        {"size_px": 72, "backbone.stem_stride": 2},
        "size_px: 72 is not a multiple of 16, the total stride of a trunk with backbone.stem_stride 2",
    ),
    ({"backbone.width": 7}, "backbone.width: a ResNet needs at least 8 channels, got 7"),
    (
        {"train.feature_stride": 8, "backbone.stem_stride": 2},
        "train.feature_stride: must be backbone.stem_stride 2 or twice that, got 8",
    ),
    (
        {"train.feature_stride": 2, "train.context.stride": 3, "size_px": 64},
        "train.context.stride: must be a multiple of train.feature_stride 2 and divide size_px 64, got 3",
    ),
    (
        {"train.feature_stride": 2, "train.context.stride": 48, "size_px": 64},
        "train.context.stride: must be a multiple of train.feature_stride 2 and divide size_px 64, got 48",
    ),
    (
        {"train.context.stride": 4, "train.feature_stride": 2, "train.image_loss.view_px": 18},
        "train.context.stride: must be a multiple of train.feature_stride 2 and divide "
        "train.image_loss.view_px 18, got 4",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), CROSS, ids=[text.split(":")[0] for _, text in CROSS])
def test_keys_that_do_not_go_together(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    path = write_params(tmp_path / "params.yaml", changes)
    assert _fault(path) == f"{path}:\n  {expected}"


def test_all_faults_are_shown_at_once_and_sorted(tmp_path: Path) -> None:
    path = write_params(
        tmp_path / "params.yaml",
        {"pretrain.lr": -1.0, "prepare.reader": "folder", "seed": True, "refine": 3, "device": "tpu"},
    )
    _edit(path, lambda content: (content["train"].pop("lr"), content["label"].update(restart=1)))
    assert _fault(path).splitlines() == [
        f"{path}:",
        "  device: must be auto, cpu, cuda or cuda:<index>, got 'tpu'",
        "  label.restart: unknown key; did you mean 'restarts'?",
        "  prepare.path: is empty, but reader: folder reads from it; set it to the folder of images/",
        "  pretrain.lr: must be > 0.0, got -1.0",
        "  refine: expected section, got 3",
        "  seed: expected int, got True",
        "  train.lr: missing; presets/demo.yaml has every key",
    ]


def test_a_file_that_is_absent(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert _fault(path) == f"{path}: not found; create it with `make preset NAME=demo`"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: b: c",
            'invalid YAML: mapping values are not allowed here in "<unicode string>", line 1, column 5: '
            "a: b: c ^ (line: 1)",
        ),
        (
            "seed: [",
            "invalid YAML: while parsing a flow node expected the node content, but found '<stream end>' in "
            '"<unicode string>", line 1, column 8: seed: [ ^ (line: 1)',
        ),
        ("- 1\n", "must be a mapping of keys to values, got list"),
        ("", "must be a mapping of keys to values, got NoneType"),
        ("params", "must be a mapping of keys to values, got str"),
    ],
)
def test_a_file_that_is_no_mapping(path: Path, text: str, expected: str) -> None:
    path.write_text(text, encoding="utf-8")
    assert _fault(path) == f"{path}: {expected}"


def test_a_key_that_is_there_twice(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "seed: 1\n", encoding="utf-8")
    assert _fault(path).startswith(f"{path}: invalid YAML: while constructing a mapping")
    assert 'found duplicate key "seed" with value "1"' in _fault(path)


def test_a_file_that_is_no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    assert _fault(path) == (
        f"{path}: invalid YAML: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    )


def test_load_hands_out_what_is_named_and_nothing_else(path: Path) -> None:
    whole, params = read(path), load(path, "seed", "refine")
    assert isinstance(params, Params)
    assert vars(params) == {"seed": whole.seed, "refine": whole.refine}
    assert list(params.model_dump()) == ["seed", "refine"]
    for name in set(Params.model_fields) - {"seed", "refine"}:  # none of them is filled in
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(params, name)
    with pytest.raises(AttributeError):
        load(path, "learning_rate")


def test_all_settings_that_are_asked_for_one_by_one_are_the_whole_file(path: Path) -> None:
    assert load(path, *Params.model_fields) == read(path)


def test_settings_cannot_be_changed(path: Path) -> None:
    params: Any = load(path, "seed", "train")
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 1
    with pytest.raises(ValueError, match="frozen"):
        params.train.lr = 0.1


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4"])
def test_a_number_in_any_notation_is_a_number_to_dvc_and_to_us(tmp_path: Path, text: str) -> None:
    path = write_params(tmp_path / "params.yaml", {"train.lr": 12345.0})
    content = path.read_text(encoding="utf-8")
    assert content.count("12345.0") == 1
    path.write_text(content.replace("12345.0", text), encoding="utf-8")
    assert read(path).train.lr == 1e-4
    assert load_yaml(str(path))["train"]["lr"] == 1e-4


def _typed(value: Any) -> Any:
    """The content with the type of every value beside it: 1, 1.0 and True are equal, and not the same."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return type(value).__name__, value


def _kinds(value: Any) -> Any:
    """Keys and types alone; an int where another file has a float is the same kind of number."""
    if isinstance(value, dict):
        return {key: _kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(dict.fromkeys(_kinds(item) for item in value))  # lists of names differ in length
    return "number" if type(value) in (int, float) else type(value).__name__


@pytest.fixture(params=PRESETS)
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """All that a preset says, as `make preset` writes it, under its name."""
    written = tmp_path / f"{request.param}.yaml"
    written.write_text(as_text(compose(request.param, REPOSITORY / "presets")), encoding="utf-8")
    return written


@pytest.mark.parametrize("path", [REPOSITORY / "params.yaml", *PRESETS.values()], ids=lambda path: path.name)
def test_dvc_reads_every_file_as_we_do(path: Path) -> None:
    ours = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    assert _typed(ours) == _typed(load_yaml(str(path)))


def test_every_preset_has_the_same_keys_in_the_same_order_and_the_same_types(whole: Path) -> None:
    def keys(value: Any, prefix: str = "") -> list[str]:
        if not isinstance(value, dict):
            return [prefix]
        return [key for name, item in value.items() for key in keys(item, f"{prefix}.{name}")]

    ours, demo = load_yaml(str(whole)), load_yaml(str(REPOSITORY / "presets/demo.yaml"))
    assert keys(ours) == keys(demo)
    for content in (ours, demo):
        content["runtime"].pop("check_data")  # a list that is empty in the demo
    assert _kinds(ours) == _kinds(demo)


def test_every_preset_is_valid(whole: Path) -> None:
    assert read(whole).preset == whole.stem


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "demo"])
def test_a_preset_says_nothing_that_it_need_not_say(name: str) -> None:
    """A value that is that of the preset below would hide that the two belong together."""
    changes = YAML(typ="safe", pure=True).load(PRESETS[name].read_text(encoding="utf-8"))
    presets = REPOSITORY / "presets"
    composed = compose(changes.pop("extends", "demo"), presets)
    if base := changes.pop("base", None):
        lay_base(composed, base, presets)
    below = plain(composed)

    def repeated(changed: Any, value: Any, key: str) -> list[str]:
        if isinstance(changed, dict):
            return [one for part in changed for one in repeated(changed[part], value[part], f"{key}.{part}")]
        return [key] if changed == value else []

    assert repeated(changes, below, name) == []


def test_params_yaml_is_a_preset() -> None:
    """As committed it is the demo's; whoever has made another active has edited or fitted it."""
    params = load_yaml(str(REPOSITORY / "params.yaml"))
    assert (REPOSITORY / f"presets/{params['preset']}.yaml").exists()
