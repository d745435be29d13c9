"""`export` through its command line: files that other programs run, compared with the trained model."""

import ast
import hashlib
import json
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import yaml

from stages.reporting.legend import plain_legend, write_cluster_legend
from stages.reporting.lineage import lineage
from stages.reporting.names import Names
from stages.segmenter.segmenter_file import load_segmenter
from stages.tools import export, segment
from stages.tools.exporting.model_card import describe_data, model_card
from stages.tools.exporting.model_run import ModelRun
from tests.datasets import REPOSITORY, write_image

SIZES = [(1, 32, 32), (2, 70, 90), (1, 37, 333), (1, 200, 9)]


@pytest.fixture
def ready(bench: Any) -> Any:
    bench.write_segmenter()
    bench.write_centroids()
    return bench


def _export(form: str, out: str, *more: str) -> None:
    export.main(["--format", form, "--out", out, "--model", ".", "--images", "images/val", *more])


def _predict(form: str, path: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if form == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        ids, scores = session.run(["ids", "scores"], {"images": images})
        return np.asarray(ids), np.asarray(scores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids, scores = torch.jit.load(path)(torch.from_numpy(images))
    return ids.numpy(), scores.numpy()


@pytest.mark.parametrize("form", ["onnx", "torch"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__context__similarity": "none"},
        {
            "train__context__color": "lab",
            "train__context__norm": "softmax",
            "train__context__combine": "log_sum",
        },
        {"backbone__stem_stride": 4, "train__feature_stride": 4, "train__context__stride": 8},
        {"backbone__stem_stride": 1, "train__context__residual": "concat"},
    ],
    ids=["default", "no context", "lab", "strides", "stem 1"],
)
def test_the_exported_model_segments_images_of_any_size_as_the_original(
    bench: Any, form: str, changes: dict[str, Any]
) -> None:
    bench.params(**changes)
    bench.write_segmenter()
    bench.write_centroids()
    _export(form, "model.bin")
    model = segment.load(".", device="cpu")
    rng = np.random.default_rng(0)
    for size in SIZES:
        images = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        ids, scores = _predict(form, "model.bin", images)
        assert (ids.dtype, ids.shape) == (np.uint8, size)
        assert scores.shape == (size[0], 3, *size[1:])
        for image, found in zip(images, ids, strict=True):
            assert (model(image).ids == found).mean() > 0.999


@pytest.mark.parametrize("form", ["onnx", "torch"])
@pytest.mark.parametrize("changes", [{"predict__mirror": True}, {"predict__unit_features": False}])
def test_features_of_the_exported_model_are_those_of_predict(
    released: Any, form: str, changes: dict[str, Any]
) -> None:
    plain = segment.load("models", device="cpu")
    released.params(**changes)
    export.main(["--format", form, "--out", "model.bin", "--images", "images/val"])
    model = segment.load("models", device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3), dtype=np.uint8)
    ids, _ = _predict(form, "model.bin", images)
    assert (model(images[0]).ids == ids[0]).mean() > 0.999
    assert not np.array_equal(model(images[0]).confidence, plain(images[0]).confidence)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_scores_are_cosines_of_pixels_and_centroids(ready: Any, form: str) -> None:
    _export(form, "model.bin")
    segmenter, _ = load_segmenter(Path("segmenter.safetensors"))
    centroids = ready.tensors("pixel_centroids.safetensors")[0]["centroids"]
    images = np.load("images/val/images.npy")[:2]
    with torch.no_grad():
        feature = F.normalize(segmenter(torch.from_numpy(images.copy()).permute(0, 3, 1, 2) / 255))
        scores = torch.einsum("ndhw,kd->nkhw", feature, centroids)
        scores = F.interpolate(scores, (32, 32), mode="bilinear")
    np.testing.assert_allclose(_predict(form, "model.bin", images)[1], scores.numpy(), atol=1e-5)


def test_names_are_in_the_file_and_merged_clusters_are_one_id(ready: Any) -> None:
    Path("names.yaml").write_text("names: {0: sky, 2: sky}")
    _export("onnx", "model.onnx", "--names", "names.yaml")
    about = {one.key: one.value for one in onnx.load("model.onnx").metadata_props}
    assert [row["name"] for row in json.loads(about["clusters"])] == ["sky", "cluster 1", "sky"]
    ids, scores = _predict("onnx", "model.onnx", np.load("images/val/images.npy"))
    np.testing.assert_array_equal(ids, np.array([0, 1, 0])[scores.argmax(1)])
    assert 2 in scores.argmax(1)


def test_a_file_that_differs_from_the_original_is_not_written(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    flags = ["--format", "onnx", "--out", "model.onnx", "--model", ".", "--images", "images/val"]
    message = ready.fault(export.main, flags)
    assert message.startswith(
        "--out model.onnx: not written, because the scores of the exported model differ"
    )
    assert not Path("model.onnx").exists()
    assert not Path("model.onnx.md").exists()


def test_a_model_that_gives_no_numbers_is_not_written(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = export.compare

    def without_numbers(model: Any, predict: Any, images: Any) -> Any:
        def spoilt(part: Any) -> Any:
            ids, scores = predict(part)
            return ids, scores * np.nan

        return compare(model, spoilt, images)

    monkeypatch.setattr(export, "compare", without_numbers)
    flags = ["--format", "onnx", "--out", "model.onnx", "--model", ".", "--images", "images/val"]
    assert "not written, because the scores of the exported model differ" in ready.fault(export.main, flags)
    assert not Path("model.onnx").exists()


def test_files_are_replaced_only_when_asked(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.pt.md").write_text("mine")
    flags = ["--format", "torch", "--out", "model.pt", "--model", "."]
    assert ready.fault(export.main, flags) == (
        "--out model.pt: model.pt.md exists; pass --overwrite to replace it"
    )
    export.main([*flags, "--overwrite"])
    assert "compared on 2 images of noise, because there is no" in capsys.readouterr().out
    assert Path("model.pt.md").read_text().startswith("# model.pt")


@pytest.mark.parametrize("folder", ["model.pt", "model.pt.md"])
@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_folder_is_never_replaced(ready: Any, folder: str, flags: list[str]) -> None:
    Path(folder, "kept").mkdir(parents=True)
    assert ready.fault(export.main, ["--format", "torch", "--out", "model.pt", "--model", ".", *flags]) == (
        "--out model.pt: is a folder; pass a file to write, such as model.pt/model.pt"
        if folder == "model.pt"
        else "--out model.pt: model.pt.md is a folder, where the card goes; pass another file to write"
    )
    assert [path.name for path in Path(folder).iterdir()] == ["kept"]
    assert ready.fault(export.main, ["--format", "onnx", "--out", ".", "--model", ".", *flags]) == (
        "--out .: is a folder; pass a file to write, such as model.onnx"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model", "gone"],
            "gone: no such folder; pass the folder of a trained model (`dvc repro` makes models)",
        ),
        (
            ["--model", ".", "--images", "gone"],
            "--images gone: no such folder; pass one such as data/images/val",
        ),
        (
            ["--model", ".", "--images", "photos"],
            "--images photos: has no images.npy, so it is no folder of images that `prepare` has packed; "
            "pass one such as data/images/val",
        ),
        (
            ["--model", ".", "--names", "foo.yaml"],
            "foo.yaml: not found; correct the path, or write a first names.yaml with `make names`",
        ),
    ],
)
def test_what_is_not_there_is_named_with_what_helps(ready: Any, flags: list[str], message: str) -> None:
    write_image(Path("photos/a.jpg"), np.zeros((9, 9, 3), dtype=np.uint8))
    assert ready.fault(export.main, ["--format", "torch", "--out", "m.pt", *flags]) == message


def test_the_card_says_what_is_known_of_the_run(bench: Any) -> None:
    for name in ("prepare", "train"):
        path = Path("metrics", f"{name}.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text((REPOSITORY / path).read_text())
    Path("metrics/evaluate").mkdir()
    unknown = {"accuracy": None, "details": [{"miou": None}]}  # no pixel has a label
    raw = {"raw": {"accuracy": 0.25, "details": [{"miou": 0.125}]}, "colour_position": unknown}
    Path("metrics/evaluate/raw.json").write_text(json.dumps(raw))
    bench.write_segmenter()
    bench.write_centroids()
    Path("models").mkdir()
    for name in ("segmenter", "pixel_centroids"):
        Path(f"{name}.safetensors").rename(f"models/{name}.safetensors")
    legend = plain_legend(3, Names({1: "road | street"}))
    own = lineage(Path("models/pixel_centroids.safetensors")).own
    write_cluster_legend(Path("metrics/report/legend.json"), legend, own)
    export.main(["--format", "torch", "--out", "model.pt", "--images", "images/val"])
    card = Path("model.pt.md").read_text()
    assert "960 training images and 160 validation images" in card
    assert "| raw | 0.25 | 0.125 |" in card
    assert "| baseline: k-means on color and position | - | - |" in card
    assert "| 1 | road \\| street |" in card
    assert Path("params.yaml").read_text().strip() in card
    assert "Compared on 4 images of images/val: largest difference of a score" in card


LOCK = """\
stages:
  pretrain:
    params: {{params.yaml: {{seed: {seed}}}}}
    outs: [{{path: models/backbone.safetensors, md5: {backbone}}}]
  train:
    deps: [{{path: models/backbone.safetensors, md5: same}}]
    params: {{params.yaml: {{seed: 7, train: {{lr: 0.25, epochs: 2}}}}}}
    outs: [{{path: models/segmenter.safetensors, md5: {segmenter}}}]
  cluster:
    outs: [{{path: models/pixel_centroids.safetensors, md5: {pixel_centroids}}}]
  predict:
    params: {{params.yaml: {{predict: {{mirror: {mirror}, unit_features: true}}}}}}
  refine:
    params: {{params.yaml: {{refine: {{backend: {backend}}}}}}}
"""


@pytest.fixture
def released(bench: Any) -> Any:
    """A model in models/, with scores beside it."""
    bench.write_segmenter()
    bench.write_centroids()
    Path("models").mkdir()
    for name in ("segmenter", "pixel_centroids"):
        Path(f"{name}.safetensors").rename(f"models/{name}.safetensors")
    Path("metrics/evaluate").mkdir(parents=True)
    for name in ("raw", "refined"):
        scores = {name: {"accuracy": 0.25, "details": [{"miou": 0.125}]}}
        Path(f"metrics/evaluate/{name}.json").write_text(json.dumps(scores))
    return bench


def _write_lock(**changes: str) -> None:
    made = {
        path.stem: hashlib.md5(path.read_bytes()).hexdigest() for path in Path("models").glob("*.safetensors")
    }
    known = {"seed": "7", "backbone": "same", "backend": "auto", "mirror": "false"}
    Path("dvc.lock").write_text(LOCK.format(**{**made, **known, **changes}))


def _card() -> str:
    return model_card(segment.load("models", device="cpu"), Path("models"), "model.pt", "torch", "Checked.")


def test_the_card_has_the_settings_of_the_training_whatever_params_yaml_says_now(released: Any) -> None:
    released.params(seed=1, train__lr=0.5)
    _write_lock()
    card = _card()
    assert "The model was trained with these settings, by `dvc.lock`." in card
    (block,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert yaml.safe_load(block) == {"seed": 7, "train": {"lr": 0.25, "epochs": 2}}
    assert "`params.yaml` beside it has other values of `seed`, `train.lr`." in card
    released.params(seed=7, train__lr=0.25)
    assert "other values" not in _card()
    Path("params.yaml").unlink()
    assert "other values" not in _card()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (None, "there is no dvc.lock beside it"),
        ({"segmenter": "other"}, "dvc.lock is of another model"),
        ({"pixel_centroids": "other"}, "dvc.lock is of another model"),
        ({"backbone": "other"}, "the stages in dvc.lock are of several runs"),
        ({"seed": "8"}, "the stages in dvc.lock are of several runs"),
    ],
)
def test_the_card_says_if_it_is_not_known_what_the_model_was_trained_with(
    released: Any, changes: dict[str, str] | None, why: str
) -> None:
    if changes is not None:
        _write_lock(**changes)
    card = _card()
    assert f"Whether the model was trained with these settings is not known: {why}." in card
    assert Path("params.yaml").read_text().strip() in card
    Path("params.yaml").unlink()
    assert f"Unknown: {why}, and no params.yaml." in _card()


def test_the_card_says_if_the_scores_are_older_than_the_model(released: Any) -> None:
    """As after `dvc repro cluster`."""
    _write_lock()
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    lock["stages"]["predict"] = {"deps": [{"path": "models/pixel_centroids.safetensors", "md5": "of before"}]}
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    assert "Whether these are scores of this model is not known: it was made again after them." in _card()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"backbone": "other"}, "the stages in dvc.lock are of several runs"),
        ({"segmenter": "other"}, "dvc.lock is of another model"),
    ],
)
def test_the_card_names_no_data_that_the_model_may_not_have_seen(
    released: Any, changes: dict[str, str], why: str
) -> None:
    """As when photographs were added and `prepare` alone has run since, or while others train."""
    figures = {"prepare": {"warnings": ["two are copies"]}, "train": {"collapsed": True}}
    for name, more in figures.items():
        known = json.loads((REPOSITORY / f"metrics/{name}.json").read_text())
        known[name]["details"][0].update(more)
        Path(f"metrics/{name}.json").write_text(json.dumps(known))
    _write_lock()
    card = _card()
    assert "960 training images" in card
    assert "- Data: two are copies" in card
    assert "- Training collapsed" in card
    assert "Whether these are scores of this model" not in card
    _write_lock(**changes)
    card = _card()
    assert f"## Training data\n\nUnknown: {why}.\n\n## Scores" in card
    assert f"Whether these are scores of this model is not known: {why}." in card
    for gone in ("960 training images", "- Data:", "- Training collapsed"):
        assert gone not in card


def test_a_lock_that_cannot_be_read_is_named_and_nothing_is_written(released: Any) -> None:
    Path("dvc.lock").write_text("<<<<<<< HEAD\nstages: {\n")
    message = released.fault(export.main, ["--format", "torch", "--out", "model.pt"])
    assert re.match(r".*/dvc\.lock: not a lock of DVC \(.*; restore it, or move it away$", message, re.DOTALL)
    assert not list(Path().glob("model.pt*"))


def test_without_a_crf_the_card_has_no_row_of_one(released: Any) -> None:
    assert "| raw + dense CRF | 0.25 | 0.125 |" in _card()
    released.params(refine__backend="none")
    assert "CRF" not in _card().partition("## Settings")[0]
    assert "| raw | 0.25 | 0.125 |" in _card()
    _write_lock()
    assert "dense CRF" in _card(), "the run had one"
    _write_lock(backend="none")
    assert "CRF" not in _card().partition("## Settings")[0]


def test_the_card_says_if_its_scores_are_of_other_features(released: Any) -> None:
    said = (
        "- The scores are of predict.mirror: true, predict.unit_features: true, and the exported file has "
        "predict.mirror: false, predict.unit_features: true."
    )
    _write_lock(mirror="true")
    assert said in _card()
    released.params(predict__mirror=True)
    assert "- The scores are of" not in _card()
    Path("dvc.lock").unlink()
    assert "- The scores are of" not in _card()


@pytest.mark.parametrize(
    ("pretrain", "said"),
    [
        ({}, "The backbone started from random weights."),
        (
            {"init": {"heads": "classifier", "sha256": "ab" * 32}},
            "has a classifier, as networks have that were trained with labels.",
        ),
        ({"init": {"heads": "projection", "sha256": "ab" * 32}}, "how it was trained is not known here."),
        (None, "What the backbone started from is unknown"),
    ],
)
def test_the_card_says_what_the_backbone_started_from(
    tmp_path: Path, pretrain: dict[str, Any] | None, said: str
) -> None:
    (tmp_path / "metrics").mkdir()
    prepare = {"train_images": 9, "val_images": 3, "manifest_sha256": "cd" * 32, "notes": ["A note"]}
    for name, figures in {"prepare": prepare, "pretrain": pretrain}.items():
        if figures is not None:
            (tmp_path / f"metrics/{name}.json").write_text(json.dumps({name: {"details": [figures]}}))
    text = " ".join(describe_data(ModelRun.of(tmp_path / "models")))
    assert "No labels of them were used in training." in text
    assert said in text


def test_the_card_says_how_sixteen_bits_become_eight(released: Any) -> None:
    assert "by\n2^(b - 8), b being the bits that they use (8, 10, 12, 14 or 16); clip at 255.\n" in _card()
    figures = json.loads((REPOSITORY / "metrics/prepare.json").read_text())
    figures["prepare"]["details"][0]["bits_per_channel"] = 12
    Path("metrics/prepare.json").write_text(json.dumps(figures))
    assert "by\n16, as in training (0 to 4,095 becomes 0 to 255); clip at 255.\n" in _card()
    Path("dvc.lock").write_text("stages: {}\n")
    assert "by\n2^(b - 8), b being" in _card(), "the data may be those of another model"


def test_a_vit_is_refused_with_the_way_around(bench: Any) -> None:
    bench.params(backbone__arch="vit_small", backbone__width=2)
    bench.write_segmenter()
    bench.write_centroids()
    message = bench.fault(export.main, ["--format", "onnx", "--out", "model.onnx", "--model", "."])
    assert message.startswith(".: has a ViT as its backbone, and only ResNets can be exported so far")


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_the_lines_of_the_card_run_without_this_project(ready: Any, form: str) -> None:
    _export(form, "model.bin")
    write_image(Path("photo.jpg"), np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    lines = re.findall(r"```python\n(.*?)```", Path("model.bin.md").read_text(), re.DOTALL)[0]
    _run_alone(lines)


def test_the_lines_of_the_documentation_run_without_this_project(ready: Any) -> None:
    _export("onnx", "model.onnx")
    write_image(Path("photo.jpg"), np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    page = (REPOSITORY / "docs/masks.md").read_text(encoding="utf-8")
    (lines,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in one)
    assert len(lines.strip().splitlines()) <= 12
    _run_alone(lines)


def _run_alone(lines: str) -> None:
    """Run lines in a folder, in which no module of this project can be imported."""
    guard = "import sys\nsys.modules['stages'] = None\n"
    ended = subprocess.run([sys.executable, "-c", guard + lines], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    shares = re.findall(r"cluster \d (\d+\.\d)%", ended.stdout)
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.2)


def test_the_lines_of_the_documentation_on_python_run(ready: Any) -> None:
    write_image(Path("photo.jpg"), np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    page = (REPOSITORY / "docs/masks.md").read_text(encoding="utf-8")
    (lines,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import load" in one)
    found: dict[str, Any] = {}
    exec(lines.replace('"models"', '"."'), found)
    assert found["found"].ids.shape == found["found"].confidence.shape == (40, 60)


def test_what_an_installation_needs_has_its_version_in_requirements() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("#")[0].strip() for line in lines} - {""}
    names = {line.partition("==")[0] for line in pinned}
    assert set(project["dependencies"]) <= names
    imports = {"faiss-gpu": "faiss", "pillow": "PIL", "pydensecrf2": "pydensecrf", "ruamel.yaml": "ruamel"}
    imports["scikit-learn"] = "sklearn"
    with_others = {"pydantic_core", "triton", "dvc_data"}  # come with pydantic, torch and DVC
    optional = {"pycocotools", "onnx", "onnxruntime"}
    found = {
        name.partition(".")[0]
        for path in (REPOSITORY / "stages").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    needed = found - with_others - optional - {"stages", *sys.stdlib_module_names}
    assert {imports.get(name, name) for name in project["dependencies"]} == needed
    assert set(project["optional-dependencies"]["export"]) <= pinned


def test_an_installation_has_what_lies_beside_the_code() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    found = {f"*{path.suffix}" for path in (REPOSITORY / "stages").rglob("*") if path.is_file()}
    assert set(project["tool"]["setuptools"]["package-data"]["*"]) == found - {"*.py", "*.pyc"}
