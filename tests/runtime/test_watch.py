"""What changes while a stage runs: DVC would record the new beside a result of the old."""

import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from stages import cluster, embed, label, predict, pretrain, refine, select_views, train
from stages.runtime.watch import Watch
from stages.settings.errors import UserError
from tests.pipeline.pipeline_file import read_stages

TRAIN, VAL = ("--images", "images/train"), ("--images", "images/val")
BACKBONE = ("--backbone", "backbone.safetensors")
SEGMENTER = ("--segmenter", "segmenter.safetensors")
HISTORY, METRICS = ("--history", "out.csv"), ("--metrics", "out.json")
STAGES: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "pretrain": (pretrain, (*TRAIN, *HISTORY, *METRICS)),
    "embed": (embed, (*TRAIN, *BACKBONE)),
    "label": (label, ("--embeddings", "embeddings.npy", *BACKBONE, *METRICS)),
    "select_views": (select_views, ("--labels", "labels.safetensors", *METRICS)),
    "train": (
        train,
        (*TRAIN, "--views", "kept_views.npy", "--label-metrics", "label.json", *BACKBONE, *HISTORY, *METRICS),
    ),
    "cluster": (cluster, (*TRAIN, *SEGMENTER, *METRICS)),
    "predict": (predict, (*VAL, *SEGMENTER, "--centroids", "pixel_centroids.safetensors")),
    "refine": (refine, (*VAL, "--predictions", "predictions.npy")),
}
CHANGES = {
    "pretrain": ("pretrain__lr", 0.5),
    "embed": ("crop_ratio", 0.7),
    "label": ("global_k", 3),
    "select_views": ("select_ratio", 0.1),
    "train": ("train__lr", 0.5),
    "cluster": ("cluster__iterations", 2),
    "predict": ("size_px", 64),
    "refine": ("refine__iterations", 2),
}
SHORT = {"pretrain__epochs": 1, "train__epochs": 1}
FIRST_READ = {  # the first input that a stage reads, after its params
    "pretrain": "open_images",
    "embed": "load_backbone",
    "train": "open_images",
    "cluster": "load_segmenter",
    "predict": "load_segmenter",
    "refine": "open_images",
}


@pytest.fixture(params=STAGES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ready(bench: Any) -> Any:
    """All that any of them reads."""
    for write in (bench.write_backbone, bench.write_kept_views, bench.write_segmenter):
        write()
    bench.write_centroids()
    bench.write_labels()
    rng = np.random.default_rng(0)
    np.save("embeddings.npy", rng.normal(size=(16, 6, 64)).astype(np.float32))
    np.save("predictions.npy", rng.uniform(-1, 1, (4, 3, 16, 16)).astype(np.float16))
    bench.params(**SHORT)
    return bench


def _argv(name: str) -> list[str]:
    return [*STAGES[name][1], "--out", "out"]


def _message(what: str, changed: str) -> str:
    return (
        f"{what}: changed while it ran: {changed}; its result would belong to neither the old nor the new, "
        "so nothing is written; run `dvc repro` again"
    )


def test_inputs_that_change(ready: Any, change_at_end: Any, name: str) -> None:
    """The check comes after the work and before the outputs, and knows each dependency that is no code."""
    stage, argv = STAGES[name][0], _argv(name)
    entry = read_stages()[name]
    flags = [flag for flag, path in pairwise(entry.cmd.split()) if path in entry.data_deps]
    paths = [Path(argv[argv.index(flag) + 1]) for flag in flags]
    assert len(paths) == len(entry.data_deps)
    files = [path / "index.csv" if path.is_dir() else path for path in paths]
    change_at_end(lambda: [_grow(file) for file in files])
    message = ready.fault(stage.main, argv)
    assert message.split(" (the state")[0] == _message(name, ", ".join(map(str, files)))
    assert not list(Path.cwd().glob("out*"))


def test_params_that_change(ready: Any, change_at_end: Any, name: str) -> None:
    key, value = CHANGES[name]
    change_at_end(lambda: ready.params(**{**SHORT, key: value}))
    message = ready.fault(STAGES[name][0].main, _argv(name))
    assert message.split(" (the state")[0] == _message(name, f"param {key.split('__')[0]}")
    assert not list(Path.cwd().glob("out*"))


@pytest.mark.parametrize("name", FIRST_READ)
def test_params_that_change_once_they_are_read(
    ready: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Loading networks, and waiting for other processes, takes its time; the watch begins before that."""
    stage, (key, value) = STAGES[name][0], CHANGES[name]
    read = getattr(stage, FIRST_READ[name])

    def read_and_change(*args: Any) -> Any:
        ready.params(**{**SHORT, key: value})
        return read(*args)

    monkeypatch.setattr(stage, FIRST_READ[name], read_and_change)
    message = ready.fault(stage.main, _argv(name))
    assert message.split(" (the state")[0] == _message(name, f"param {key.split('__')[0]}")


@pytest.fixture
def watch(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Of a stage with one module, one param and one folder; `module.py` is the code."""
    Path("module.py").write_text("one = 1\n")
    module = ModuleType("stages.module")
    module.__file__ = "module.py"
    monkeypatch.setitem(sys.modules, "stages.module", module)
    return Watch("stage", Path("params.yaml"), ["seed"], [Path("images")])


def test_nothing_changed(watch: Watch) -> None:
    watch.check()


def test_params_of_others_may_change(bench: Any, watch: Watch) -> None:
    bench.params(global_k=3, runtime__num_workers=1, device="cpu")
    watch.check()


def test_code_that_is_loaded_later_is_no_change(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    late = ModuleType("stages.late")
    late.__file__ = "images/val/index.csv"
    monkeypatch.setitem(sys.modules, "stages.late", late)
    watch.check()


@pytest.mark.parametrize("text", ["one = 2\n", None])
def test_code_that_changed_or_is_gone(watch: Watch, text: str | None) -> None:
    path = Path("module.py")
    path.unlink() if text is None else path.write_text(text)
    assert _fault(watch) == _message("stage", "code stages.module")


def test_a_file_that_came_one_that_went_and_one_that_another_replaced(watch: Watch) -> None:
    Path("images/new.npy").touch()
    Path("images/train/index.csv").unlink()
    content = Path("images/val/images.npy").read_bytes()
    Path("images/val/images.npy").rename("images/.old")
    Path("images/val/images.npy").write_bytes(content)
    expected = "images/train/index.csv, images/val/images.npy, images/.old, images/new.npy"
    assert _fault(watch) == _message("stage", expected)


def test_much_that_changed_is_named_in_part(bench: Any, watch: Watch) -> None:
    bench.params(seed=5)
    for number in range(6):
        Path(f"images/{number}.npy").touch()
    shown = "param seed, images/0.npy, images/1.npy, images/2.npy, images/3.npy and 2 more"
    assert _fault(watch) == _message("stage", shown)


def _fault(watch: Watch) -> str:
    with pytest.raises(UserError) as raised:
        watch.check()
    return str(raised.value)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")
